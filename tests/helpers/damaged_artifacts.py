"""Damaged artifacts and forged manifests."""

import json
from pathlib import Path

from kerasim import _artifacts


def reseal(path, **changes):
    """Changes fields of a manifest and updates its digest."""
    file = Path(path) / _artifacts.MANIFEST
    body = json.loads(file.read_text())
    del body["manifest_sha256"]
    body.update(changes)
    file.write_text(json.dumps({**body, "manifest_sha256": _artifacts._digest(body)}))


def mutate(rng, whole):
    """Returns `whole` with a run of bytes changed, removed, doubled or inserted."""
    start = rng.randrange(len(whole) + 1)
    stop = min(len(whole), start + rng.randrange(1, 20))
    way = rng.randrange(4)
    middle = (
        rng.randbytes(stop - start),
        b"",
        whole[start:stop] * 2,
        rng.randbytes(rng.randrange(1, 20)) + whole[start:stop],
    )[way]
    return whole[:start] + middle + whole[stop:]

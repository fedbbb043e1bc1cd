import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from kerasim import _artifacts, projection
from kerasim.errors import ArgumentError, ArgumentTypeError, ArtifactError
from kerasim.projection import Projection


@pytest.fixture(scope="module")
def vectors():
    """Five clusters of 16 vectors; the last row repeats the first."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(5, 8)) * 4, 16, axis=0) + rng.normal(size=(80, 8))
    x[-1] = x[0]
    return x.astype("float32")


@pytest.fixture(scope="module")
def fitted(vectors):
    projection = Projection(n_neighbors=6, min_dist=0.3, seed=3)
    projection.fit_transform(vectors)
    return projection


@pytest.fixture(scope="module")
def new(vectors):
    return vectors[:20] + np.random.default_rng(1).normal(size=(20, 8)).astype("float32")


def test_each_row_has_a_place_in_the_plane_as_float32(fitted, vectors):
    assert fitted.coordinates_.shape == (len(vectors), 2)
    assert fitted.coordinates_.dtype == "float32"
    assert np.isfinite(fitted.coordinates_).all()


@pytest.mark.fault(68)
def test_the_same_seed_draws_the_same_map(fitted, vectors):
    again = Projection(n_neighbors=6, min_dist=0.3, seed=3).fit_transform(vectors)
    np.testing.assert_array_equal(again, fitted.coordinates_)


def test_another_seed_draws_another_map(fitted, vectors):
    other = Projection(n_neighbors=6, min_dist=0.3, seed=4).fit_transform(vectors)
    assert np.abs(other - fitted.coordinates_).max() > 0.1


def test_min_dist_reaches_umap(fitted, vectors):
    other = Projection(n_neighbors=6, min_dist=0.9, seed=3).fit_transform(vectors)
    assert np.abs(other - fitted.coordinates_).max() > 0.1


@pytest.mark.fault(79)
def test_fitting_twice_is_fitting_once(fitted, vectors, new):
    twice = Projection(n_neighbors=6, min_dist=0.3, seed=3)
    twice.fit_transform(vectors[:30] + 1)
    np.testing.assert_array_equal(twice.fit_transform(vectors), fitted.coordinates_)
    np.testing.assert_array_equal(twice.transform(new), fitted.transform(new))
    assert twice.trustworthiness_ == fitted.trustworthiness_


@pytest.mark.fault(79)
def test_the_input_is_left_alone(vectors):
    x = vectors.copy()
    x.flags.writeable = False
    Projection(n_neighbors=6).fit_transform(x)
    np.testing.assert_array_equal(x, vectors)


def test_changing_the_map_returned_does_not_change_the_projection(vectors):
    projection = Projection(n_neighbors=6)
    places = projection.fit_transform(vectors)
    before = places.copy()
    places[:] = 0
    np.testing.assert_array_equal(projection.coordinates_, before)


def test_neighbors_on_the_map_are_neighbors_in_truth(fitted, vectors):
    noise = np.random.default_rng(2).normal(size=(80, 2))
    assert trustworthiness(vectors, noise, n_neighbors=5) < 0.65
    assert fitted.trustworthiness_ > 0.85


def test_trustworthiness_is_scikit_learns(fitted, vectors):
    expected = trustworthiness(vectors, fitted.coordinates_, n_neighbors=5)
    assert fitted.trustworthiness_ == pytest.approx(expected, abs=1e-12)


def test_of_many_rows_the_trustworthiness_is_that_of_some_drawn_with_the_seed(
    vectors, fitted, monkeypatch
):
    monkeypatch.setattr(projection, "_TRUST_ROWS", 20)
    rows = np.random.default_rng(fitted.seed).choice(len(vectors), 20, replace=False)
    expected = trustworthiness(vectors[rows], fitted.coordinates_[rows], n_neighbors=5)
    assert fitted._trustworthiness(vectors) == pytest.approx(expected, abs=1e-12)


def test_clusters_stay_apart_on_the_map(fitted):
    clusters = fitted.coordinates_[:64].reshape(4, 16, 2)
    centres = clusters.mean(axis=1)
    for n, cluster in enumerate(clusters):
        gaps = np.linalg.norm(cluster[:, None] - centres, axis=-1)
        assert (gaps.argmin(axis=1) == n).mean() > 0.9


def test_a_fitted_vector_keeps_its_place(fitted, vectors):
    np.testing.assert_array_equal(fitted.transform(vectors), fitted.coordinates_)


def test_copies_share_one_place(fitted, vectors):
    np.testing.assert_array_equal(fitted.coordinates_[0], fitted.coordinates_[-1])
    assert len(np.unique(fitted.coordinates_, axis=0)) == len(vectors) - 1


def test_copies_do_not_move_the_other_vectors(vectors):
    x = vectors[:40]
    alone = Projection(n_neighbors=6).fit_transform(x)
    many = Projection(n_neighbors=6).fit_transform(np.concatenate([x, np.repeat(x[:1], 60, 0)]))
    np.testing.assert_array_equal(many[:40], alone)
    np.testing.assert_array_equal(many[40:], np.repeat(alone[:1], 60, axis=0))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_few_vectors_with_many_copies_have_a_place_each(count, vectors):
    x = vectors[:count][np.arange(30) % count]
    places = Projection(n_neighbors=10).fit_transform(x)
    assert np.isfinite(places).all() and len(np.unique(places, axis=0)) == count
    np.testing.assert_array_equal(places[:count], places[count : 2 * count])


def purity(places, x):
    """Returns how often neighbors on the map are of the same cluster of 16 vectors."""
    gaps = np.square(places[:, None].astype("float64") - places[None]).sum(axis=-1)
    np.fill_diagonal(gaps, np.inf)
    near = np.argsort(gaps, axis=1)[:, :5]
    return (near // 16 == np.arange(len(x))[:, None] // 16).mean()


MOVED = {
    "tiny": lambda x: x * 1e-30,
    "huge": lambda x: x * 1e30,
    "least": lambda x: x * 1e-305,
    "largest": lambda x: x * 1e305,
    "far from the origin": lambda x: x + 1e8,
    "narrow": lambda x: 1 + 1e-9 * x,
    "with one far vector": lambda x: np.where(np.arange(64)[:, None] == 20, 1e20, x),
    "with a vector near the largest": lambda x: np.where(np.arange(64)[:, None] == 20, 1e300, x),
    "with one coordinate of another size": lambda x: x * np.r_[1e-20, np.ones(7)],
}


@pytest.mark.parametrize("kind", MOVED)
def test_size_and_offset_of_the_vectors_do_not_change_what_lies_together(kind, vectors):
    x = MOVED[kind](vectors[:64].astype("float64"))
    projection = Projection(n_neighbors=6, seed=3)
    places = projection.fit_transform(x)
    assert np.isfinite(places).all()
    assert purity(places, x) > 0.9 and projection.trustworthiness_ > 0.8
    np.testing.assert_array_equal(projection.transform(x), places)


def test_vectors_too_far_apart_for_a_distance_are_refused():
    x = np.eye(6) * 1.7e308 * np.where(np.arange(6) % 2, 1, -1)
    with pytest.raises(ArgumentError, match="x holds a vector whose neighbors are .*1.8e308"):
        Projection(n_neighbors=2).fit_transform(x)


def test_a_projection_shows_its_settings_and_what_it_was_fitted_on(fitted):
    assert repr(Projection()) == "<Projection n_neighbors=15, min_dist=0.1, seed=0: not fitted>"
    held = f"80 vectors of 8 numbers, trustworthiness_={fitted.trustworthiness_:.3f}"
    assert repr(fitted) == f"<Projection n_neighbors=6, min_dist=0.3, seed=3: {held}>"


@pytest.mark.fault(68)
def test_new_points_one_by_one_lie_where_the_batch_puts_them(fitted, new):
    single = np.concatenate([fitted.transform(row[None]) for row in new])
    np.testing.assert_array_equal(single, fitted.transform(new))


def test_a_new_point_lies_at_the_mean_of_its_neighbors_weighted_by_inverse_distance(fitted):
    x = fitted._index.embeddings.astype("float64")
    point = x[7] + 0.5
    distances = np.linalg.norm(x - point, axis=1)
    nearest = np.argsort(distances)[:6]
    expected = np.average(fitted.coordinates_[nearest], axis=0, weights=1 / distances[nearest])
    np.testing.assert_allclose(fitted.transform(point[None])[0], expected, rtol=1e-5)


def test_a_point_far_away_is_placed_inside_the_map(fitted):
    place = fitted.transform(np.full((1, 8), 1e30))[0]
    assert (place >= fitted.coordinates_.min(axis=0)).all()
    assert (place <= fitted.coordinates_.max(axis=0)).all()


def test_placing_does_not_move_the_fitted_map(fitted, new):
    before = fitted.coordinates_.copy()
    fitted.transform(new)
    np.testing.assert_array_equal(fitted.coordinates_, before)


@pytest.mark.fault(66)
def test_no_new_points_have_no_places(fitted):
    assert fitted.transform(np.empty((0, 8))).shape == (0, 2)


@pytest.mark.fault(66)
@pytest.mark.parametrize("width", [1, 7, 9, 32])
def test_points_of_another_width_are_refused(width, fitted):
    with pytest.raises(ArgumentError, match=rf"\(n, 8\).*Received shape \(3, {width}\)"):
        fitted.transform(np.zeros((3, width)))


@pytest.mark.fault(66)
@pytest.mark.parametrize("shape", [(8,), (2, 2, 2), (1, 2, 2, 2)])
def test_points_of_another_rank_are_refused(shape, fitted):
    with pytest.raises(ArgumentError, match="Received shape"):
        fitted.transform(np.zeros(shape))
    with pytest.raises(ArgumentError, match="Received shape"):
        Projection().fit_transform(np.zeros(shape))


@pytest.mark.fault(66)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused_by_number(value, fitted, vectors):
    bad = vectors.copy()
    bad[[4, 9], 0] = value
    with pytest.raises(ArgumentError, match="NaN or infinity in 2 of 80 rows: 4, 9"):
        Projection(n_neighbors=6).fit_transform(bad)
    with pytest.raises(ArgumentError, match="NaN or infinity in 2 of 80 rows: 4, 9"):
        fitted.transform(bad)


@pytest.mark.fault(65)
@pytest.mark.parametrize("rows", range(6))
def test_too_few_rows_are_refused_with_the_number_that_is_needed(rows):
    with pytest.raises(ArgumentError, match=f"x has {rows} rows; n_neighbors=15 needs 16 or more"):
        Projection().fit_transform(np.zeros((rows, 3)))


@pytest.mark.fault(65)
def test_as_many_neighbors_as_rows_are_refused(vectors):
    with pytest.raises(ArgumentError, match="x has 10 rows; n_neighbors=10 needs 11"):
        Projection(n_neighbors=10).fit_transform(vectors[:10])


@pytest.mark.fault(65)
@pytest.mark.parametrize("rows, n_neighbors", [(5, 2), (5, 4), (6, 5), (11, 10)])
def test_the_fewest_rows_allowed_are_drawn(rows, n_neighbors, vectors):
    projection = Projection(n_neighbors=n_neighbors)
    assert projection.fit_transform(vectors[::7][:rows]).shape == (rows, 2)
    assert np.isnan(projection.trustworthiness_)


@pytest.mark.fault(65)
def test_fewer_than_five_rows_are_refused_whatever_n_neighbors_is(vectors):
    with pytest.raises(ArgumentError, match="n_neighbors=2 needs 5 or more"):
        Projection(n_neighbors=2).fit_transform(vectors[:4])


@pytest.mark.fault(67)
def test_equal_rows_are_warned_of_and_each_has_a_place():
    with pytest.warns(UserWarning, match="All 20 rows of x are equal: there is no structure"):
        places = Projection(n_neighbors=5).fit_transform(np.ones((20, 4)))
    assert places.shape == (20, 2)
    assert np.isfinite(places).all()


@pytest.mark.fault(67)
def test_many_duplicates_are_drawn_with_a_place_each(vectors):
    x = np.repeat(vectors[:3], 10, axis=0)
    places = Projection(n_neighbors=5).fit_transform(x)
    assert places.shape == (30, 2)
    assert np.isfinite(places).all()


def test_umaps_own_warnings_are_not_shown(vectors):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Projection(n_neighbors=4, seed=1).fit_transform(vectors[::4])
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize(
    "name, value, kind",
    [
        ("n_neighbors", 1, ArgumentError),
        ("n_neighbors", 0, ArgumentError),
        ("n_neighbors", -1, ArgumentError),
        ("n_neighbors", 2.5, ArgumentTypeError),
        ("n_neighbors", "8", ArgumentTypeError),
        ("n_neighbors", None, ArgumentTypeError),
        ("n_neighbors", True, ArgumentTypeError),
        ("min_dist", -0.1, ArgumentError),
        ("min_dist", 1.1, ArgumentError),
        ("min_dist", np.nan, ArgumentError),
        ("min_dist", "0.1", ArgumentTypeError),
        ("seed", -1, ArgumentError),
        ("seed", 0.5, ArgumentTypeError),
        ("seed", None, ArgumentTypeError),
    ],
)
def test_a_bad_setting_is_refused_by_name(name, value, kind):
    with pytest.raises(kind, match=f"^{name}[ =]"):
        Projection(**{name: value})


def test_a_projection_that_was_not_fitted_says_so(tmp_path):
    with pytest.raises(ArgumentError, match="not fitted: call fit_transform"):
        Projection().transform(np.zeros((1, 2)))
    with pytest.raises(ArgumentError, match="not fitted: call fit_transform"):
        Projection().save(tmp_path / "map")


def test_rows_that_are_refused_leave_the_map_as_it_was(fitted, new):
    before = fitted.transform(new)
    with pytest.raises(ArgumentError):
        fitted.fit_transform(np.zeros((3, 2)))
    np.testing.assert_array_equal(fitted.transform(new), before)


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("projection") / "map"
    fitted.save(path)
    return path


def test_a_saved_projection_keeps_its_settings_and_its_map(saved, fitted):
    loaded = Projection.load(saved)
    assert (loaded.n_neighbors, loaded.min_dist, loaded.seed) == (6, 0.3, 3)
    assert loaded.trustworthiness_ == fitted.trustworthiness_
    np.testing.assert_array_equal(loaded.coordinates_, fitted.coordinates_)


CHILD = """
import pickle, sys
import numpy as np

def refuse(*args, **kwargs):
    raise AssertionError("unpickled")

pickle.load = pickle.loads = pickle.Unpickler = refuse
from kerasim.projection import Projection

folder, source, target = sys.argv[1:]
np.save(target, Projection.load(folder).transform(np.load(source)))
assert "umap" not in sys.modules
"""


@pytest.mark.fault(69)
def test_a_fresh_process_puts_new_points_in_the_same_places_without_pickle(
    saved, fitted, new, tmp_path
):
    source, target = tmp_path / "new.npy", tmp_path / "places.npy"
    np.save(source, new)
    child = [sys.executable, "-c", CHILD, saved, source, target]
    done = subprocess.run(child, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(target), fitted.transform(new))


@pytest.mark.fault(69)
def test_a_saved_projection_holds_plain_arrays_and_nothing_else(saved):
    assert sorted(file.name for file in saved.iterdir()) == ["arrays.npz", "kerasim.json"]
    arrays = _artifacts.read_arrays(saved / "arrays.npz")
    assert {key: array.dtype.kind for key, array in arrays.items()} == {
        "x": "f",
        "coordinates": "f",
    }


def test_a_map_without_trustworthiness_is_saved_and_loaded(vectors, tmp_path):
    projection = Projection(n_neighbors=3)
    projection.fit_transform(vectors[:8])
    projection.save(tmp_path / "map")
    assert np.isnan(Projection.load(tmp_path / "map").trustworthiness_)


def test_a_damaged_projection_is_refused(fitted, tmp_path):
    fitted.save(tmp_path / "map")
    file = tmp_path / "map" / "arrays.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="arrays.npz is damaged"):
        Projection.load(tmp_path / "map")

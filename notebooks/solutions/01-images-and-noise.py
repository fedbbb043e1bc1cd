"""Solutions to the exercises of notebook 01, on the bundled digits.

Run with: python notebooks/solutions/01-images-and-noise.py
"""

import numpy as np

from kerasim import data, embedding, metrics, neighbors

VALIDATION = 240  # training images in the validation split, the queries of all three exercises


def load():
    """Returns the images and labels of the gallery and of the validation split."""
    digits = data.load_dataset("digits")
    x, y = digits.x_train, digits.y_train
    return x[:-VALIDATION], y[:-VALIDATION], x[-VALIDATION:], y[-VALIDATION:]


def search(gallery, labels, queries, query_labels, metric="euclidean"):
    """Returns the precision at 10 of each query, and the rows of its neighbors."""
    index = neighbors.NeighborIndex(metric).fit(embedding.pixels(gallery))
    found = index.query(embedding.pixels(queries), k=10)[1]
    return (labels[found] == query_labels[:, None]).mean(axis=1), found


def difference(new, old):
    """Returns the mean difference over the same queries, its 95 % interval, and a verdict."""
    low, high = metrics.bootstrap_interval(new - old)
    verdict = "higher" if low > 0 else "lower" if high < 0 else "no difference shown"
    return f"{(new - old).mean():+.4f} ({low:+.4f} to {high:+.4f}): {verdict}"


def exercise_1():
    """The metrics in pairs: on centered digits they differ by about a point or less."""
    gallery, labels, queries, query_labels = load()
    precision = {
        metric: search(gallery, labels, queries, query_labels, metric)[0]
        for metric in neighbors.METRICS
    }
    for metric, values in precision.items():
        print(f"{metric}: precision at 10 {values.mean():.4f}")
    for metric in ("manhattan", "cosine"):
        print(f"{metric} minus euclidean: {difference(precision[metric], precision['euclidean'])}")


def exercise_2():
    """A shift moves each value to another place, and a pixel distance compares places."""
    gallery, labels, queries, query_labels = load()
    original, _ = search(gallery, labels, queries, query_labels)
    print(f"not shifted: precision at 10 {original.mean():.4f}")
    for pixels in (1, 2, 4):
        # The digits have a black margin of four pixels, so nothing leaves the image.
        shifted = np.roll(queries, pixels, axis=2)
        values, _ = search(gallery, labels, shifted, query_labels)
        print(
            f"{pixels} to the right: {values.mean():.4f}, difference {difference(values, original)}"
        )
    print("Images of 8 x 8 were enlarged by 3, so four pixels are more than one original pixel.")


def exercise_3():
    """Cosine distance ignores the length of a vector, so it ignores the brightness."""
    gallery, labels, queries, query_labels = load()
    for metric in neighbors.METRICS:
        bright, found = search(gallery, labels, queries, query_labels, metric)
        dark, found_dark = search(gallery, labels, queries / 2, query_labels, metric)
        kept = metrics.neighbor_overlap(found, found_dark).mean()
        print(f"{metric}: precision at 10 {bright.mean():.4f}, halved {dark.mean():.4f}; ", end="")
        print(f"{100 * kept:.0f} % of the neighbors are the same")
    print("cos(q / 2, x) = cos(q, x): the factor cancels. Adding a constant would not cancel.")


def main():
    for exercise in (exercise_1, exercise_2, exercise_3):
        print(f"\n{exercise.__name__}: {exercise.__doc__}")
        exercise()


if __name__ == "__main__":
    main()

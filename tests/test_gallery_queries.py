import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kerasim.errors import ArgumentError, ArgumentTypeError
from kerasim.gallery import Gallery


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


def flat_embedder(shape=(4, 4, 1)):
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten()])


LABELS = ["cat", "dog", "owl", ""] * 5


@pytest.fixture
def images():
    return np.random.default_rng(0).random((20, 4, 4, 1), dtype="float32")


@pytest.fixture(params=["exact", "hnsw", "hnsw_sq8", "binary"])
def gallery(request, images):
    made = Gallery(flat_embedder(), "euclidean", request.param)
    made.add(images, labels=LABELS)
    return made


def test_vectors_find_what_their_images_find(gallery, images):
    expected = gallery.query(images[:3], k=5)
    found = gallery.query(vectors=images[:3].reshape(3, 16), k=5)
    pd.testing.assert_frame_equal(found, expected)
    np.testing.assert_array_equal(gallery.vectors, images.reshape(20, 16))
    gallery.remove([0, 7])
    np.testing.assert_array_equal(
        gallery.vectors, np.delete(images, [0, 7], axis=0).reshape(18, 16)
    )
    gallery.vectors[:] = 0  # a copy
    assert gallery.vectors.any()


@pytest.mark.parametrize("labels", ["cat", ["cat"], ("cat", "owl"), {"owl": 1}], ids=str)
def test_a_search_may_be_limited_to_labels(gallery, images, labels):
    wanted = {labels} if isinstance(labels, str) else set(labels)
    found = gallery.query(images[:4], k=3, labels=labels)
    assert set(found["label"]) <= wanted and found["rank"].tolist() == [1, 2, 3] * 4
    everything = gallery.query(images[:4], k=20)
    for query in range(4):
        rows = everything[(everything["query"] == query) & everything["label"].isin(wanted)]
        assert rows["id"].tolist()[:3] == found[found["query"] == query]["id"].tolist()


def test_labels_may_be_numbers(images):
    gallery = Gallery(flat_embedder())
    gallery.add(images, labels=[1, 2] * 10)
    assert set(gallery.query(images[:1], k=9, labels=2)["label"]) == {"2"}
    assert set(gallery.query(images[:1], k=9, labels=np.array([1]))["label"]) == {"1"}


def test_fewer_items_of_a_label_than_asked_for_are_all_found_with_a_warning(gallery, images):
    with pytest.warns(UserWarning, match="k=7 is more than the 5 items that can be found"):
        assert gallery.query(images[:1], k=7, labels="owl")["rank"].tolist() == [1, 2, 3, 4, 5]


def test_a_label_that_no_item_has_is_refused_with_those_there_are(gallery, images):
    with pytest.raises(ArgumentError, match="labels='fox': no item.*'cat', 'dog', 'owl'"):
        gallery.query(images, labels="fox")
    gallery.remove(gallery.items.query("label == 'owl'")["id"])
    with pytest.raises(ArgumentError, match="no item has such a label"):
        gallery.query(images, labels="owl")


def test_items_of_the_group_of_a_query_are_not_found(gallery, images):
    days = np.repeat(["mon", "tue", "wed", "thu"], 5)
    found = gallery.query(images, k=4, query_groups=days, item_groups=days)
    assert (days[found["id"]] != days[found["query"]]).all() and len(found) == 80
    everything = gallery.query(images, k=20)
    for query in (0, 13):
        rows = everything[everything["query"] == query]
        expected = rows["id"][(days[rows["id"]] != days[query])][:4].tolist()
        assert found["id"][found["query"] == query].tolist() == expected
    gallery.remove([2])
    kept = np.delete(days, 2)
    found = gallery.query(ids=[0], k=4, query_groups=["mon"], item_groups=kept)
    assert not set(found["id"]) & {0, 1, 2, 3, 4}


def test_a_query_whose_group_holds_all_but_a_few_items_finds_those(gallery, images):
    groups = ["a"] * 18 + ["b"] * 2
    found = gallery.query(
        images[:2], k=5, query_groups=["a", "b"], item_groups=groups, labels=["owl", "cat"]
    )
    by_query = found.groupby("query")["id"].agg(list)
    assert by_query[0] == [18] and len(by_query[1]) == 5


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"query_groups": ["a"]}, "query_groups is given without item_groups"),
        ({"item_groups": ["a"] * 20}, "item_groups is given without query_groups"),
        ({"query_groups": ["a"], "item_groups": ["a"] * 3}, "item_groups"),
        ({"query_groups": ["a", "b"], "item_groups": ["a"] * 20}, "query_groups"),
        ({"query_labels": ["a", "b"]}, "query_labels"),
        ({"ids": [0]}, "either images, ids or vectors"),
        ({"vectors": np.zeros((1, 16))}, "either images, ids or vectors"),
        ({"images": None}, "either images, ids or vectors"),
        ({"images": None, "vectors": np.zeros((1, 5))}, r"vectors must be an array \(n, 16\)"),
        ({"images": None, "vectors": np.full((1, 16), np.nan)}, "vectors"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(gallery, images, settings, said):
    with pytest.raises(ArgumentError, match=said):
        gallery.query(**{"images": images[:1], **settings})


def test_labels_of_the_queries_say_what_is_correct(gallery, images):
    found = gallery.query(images[[0, 1, 3]], k=1, query_labels=["cat", "owl", ""])
    assert found["query_label"].tolist() == ["cat", "owl", ""]
    assert found["label"].tolist() == ["cat", "dog", ""]
    assert found["correct"].tolist() == [True, False, pd.NA]
    others = gallery.query(images[3:4], k=1, query_labels=["cat"])
    assert others["correct"].isna().tolist() == [True]  # the item has no label


def test_found_images_are_drawn_beside_their_queries(gallery, images):
    found = gallery.query(images[:3], k=4, query_labels=LABELS[:3])
    figure = gallery.show(found, images[:3], images)
    assert len(figure.axes) == 15 and figure.axes[0].get_title() == "query"
    assert figure.axes[1].get_title() == "0.00"
    by_id = gallery.show(gallery.query(ids=[5, 6], k=2), [5, 6], images)
    assert len(by_id.axes) == 6


def test_files_are_drawn_with_their_aspect_ratio(tmp_path):
    for n in range(3):
        Image.new("RGB", (80, 40), (200, 60 * n, 0)).save(tmp_path / f"{n}.png")
    gallery = Gallery(flat_embedder((4, 4, 3)))
    gallery.add(tmp_path)
    figure = gallery.show(gallery.query(ids=[0], k=2), [0])
    drawn = np.asarray(figure.axes[1].images[0].get_array())
    assert (drawn[:20] == 1).all() and (drawn[48] != 1).any()


def test_what_cannot_be_drawn_is_refused(gallery, images):
    found = gallery.query(images[:1], k=2)
    with pytest.raises(ArgumentTypeError, match="found must be the table that query returns"):
        gallery.show(found["id"], images[:1])
    without = Gallery(gallery.embedder, thumbnail_size=None)
    without.add(images)
    with pytest.raises(ArgumentError, match="added as arrays, without a file: pass images="):
        without.show(found, images[:1])
    with pytest.raises(ArgumentError, match="images"):
        gallery.show(found, images[:1], images[:5])
    with pytest.raises(ArgumentError, match="found holds no rows"):
        gallery.show(found[:0], images[:1], images)


def test_a_filtered_table_can_be_drawn(gallery, images):
    found = gallery.query(images[:3], k=4)
    others = found[found["rank"] > 1]
    assert len(gallery.show(others, images[:3], images).axes) == 3 * (1 + 3)
    near = found[(found["query"] != 1) | (found["rank"] < 3)]
    assert len(gallery.show(near, images[:3], images).axes) == 3 * (1 + 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda images: images[..., 0], "images has shape"),
        (lambda images: 255 * images, r"images\[.*outside \[0, 1\]|floats outside"),
        (lambda images: np.where(images > 0.5, np.nan, images), "NaN"),
        (lambda images: np.repeat(images, 4, axis=-1), "channels=4"),
    ],
    ids=["no channels", "0 to 255", "nan", "four channels"],
)
def test_images_that_cannot_be_drawn_are_refused(gallery, images, change, said):
    found = gallery.query(images[:1], k=2)
    with pytest.raises(ArgumentError, match=said):
        gallery.show(found, images[:1], change(images))


def test_an_item_that_was_removed_since_is_named(gallery, images):
    found = gallery.query(images[:1], k=2)
    gallery.remove(found["id"])
    with pytest.raises(ArgumentError, match="are not in the gallery"):
        gallery.show(found, images[:1])


def test_labels_are_one_or_several_and_not_none(gallery, images):
    label = gallery.items["label"][0]
    for labels in (label, [label], np.array(label), np.array([label]), label.encode()):
        found = gallery.query(images[:1], k=2, labels=labels)
        assert set(found["label"]) == {label}
    with pytest.raises(ArgumentError, match="labels is empty"):
        gallery.query(images[:1], labels=[])


def test_a_gallery_whose_vectors_stay_on_the_disk_answers_and_grows(gallery, images, tmp_path):
    gallery.save(tmp_path / "gallery")
    loaded = Gallery.load(tmp_path / "gallery", mmap_mode="r")
    pd.testing.assert_frame_equal(loaded.query(images[:3], k=5), gallery.query(images[:3], k=5))
    np.testing.assert_array_equal(loaded.vectors, gallery.vectors)
    loaded.remove([3])
    loaded.add(1 - images[:2])
    loaded.save(tmp_path / "gallery")  # in place of the files that it reads from
    assert loaded.query(1 - images[:2], k=1)["id"].tolist() == [20, 21]
    again = Gallery.load(tmp_path / "gallery", mmap_mode="r")
    pd.testing.assert_frame_equal(again.query(images[:3], k=5), loaded.query(images[:3], k=5))
    with pytest.raises(ArgumentError, match="mmap_mode='w' is not known"):
        Gallery.load(tmp_path / "gallery", mmap_mode="w")

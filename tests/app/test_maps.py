import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from clamplib.app.maps import MAX_LABELS, OTHER, draw_html, draw_png, pca, pca_axes, project
from clamplib.files import InputError

HOSTILE = "</script><script>document.title = 'broken out'</script><!-- & \"'\u2028"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def one_thread():
    """One thread: with few points, several are slow while other processes run."""
    with pytest.importorskip("threadpoolctl").threadpool_limits(1):
        yield


def vectors(count=20, size=8, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


def two_clusters(each=8):
    """Vectors near two directions at a right angle, of all lengths: [2 * each, 8]."""
    rng = np.random.default_rng(0)
    centers = np.repeat(np.eye(8)[:2], each, axis=0)
    noisy = centers + 0.05 * rng.normal(size=centers.shape)
    return (noisy * rng.uniform(0.1, 10, (2 * each, 1))).astype(np.float32)


def gap(points):
    """The smallest distance between the clusters, divided by the largest within one."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    half = len(points) // 2
    return distances[:half, half:].min() / max(distances[:half, :half].max(), distances[half:, half:].max())


def test_pca_is_the_svd_of_the_centered_directions():
    x = vectors()
    directions = x / np.linalg.norm(x, axis=1, keepdims=True)
    left, values, _ = np.linalg.svd(directions - directions.mean(0), full_matrices=False)
    points, shares = pca(x)
    assert points.dtype == np.float32 and points.shape == (20, 2)
    np.testing.assert_allclose(np.abs(points), np.abs(left[:, :2] * values[:2]), atol=1e-5)
    np.testing.assert_allclose(shares, values[:2] ** 2 / (values**2).sum(), rtol=1e-5)
    assert points.var(0)[0] > points.var(0)[1]
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-6)
    assert (project(x) == points).all()


def test_pca_ignores_lengths_and_keeps_its_signs():
    x = vectors()
    points, _ = pca(x)
    lengths = np.random.default_rng(1).uniform(0.1, 10, (20, 1)).astype(np.float32)
    np.testing.assert_allclose(pca(x * lengths)[0], points, atol=1e-5)
    order = np.random.default_rng(2).permutation(20)
    np.testing.assert_allclose(pca(x[order])[0], points[order], atol=1e-5)


def test_pca_of_rotated_vectors_is_the_same_up_to_signs():
    x = vectors()
    turn = np.linalg.qr(vectors(8, 8, seed=1))[0]
    np.testing.assert_allclose(np.abs(pca(x @ turn)[0]), np.abs(pca(x)[0]), atol=1e-5)


def test_pca_by_hand():
    """The mean direction is (0, .3, .4): two lie 1 from it along the first axis, all .5 along (0, .6, .8)."""
    points, shares = pca(np.array([[2, 0, 0], [-5, 0, 0], [0, 3, 4], [0, 3, 4]], np.float32))
    np.testing.assert_allclose(np.abs(points), [[1, 0.5], [1, 0.5], [0, 0.5], [0, 0.5]], atol=1e-6)
    np.testing.assert_allclose(shares, [2 / 3, 1 / 3])
    assert points[0, 0] == 1 and points[2, 1] == 0.5  # the largest weight of a component is positive
    assert pca_axes(shares) == ("component 1: 66.7% of the variance", "component 2: 33.3% of the variance")


@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_pca_of_few_and_of_equal_vectors(count):
    points, shares = pca(vectors(count))
    assert points.shape == (count, 2) and np.isfinite(points).all() and shares.sum() <= 1 + 1e-9
    if count < 3:  # one point has no variance, two have it along the line through them
        np.testing.assert_allclose(shares, [count - 1, 0], atol=1e-9)
    lengths = np.arange(1, count + 1, dtype=np.float32)[:, None]
    points, shares = pca(vectors(1) * lengths)
    assert not points.any() and not shares.any()


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_too_few_directions_for_tsne_and_umap(method):
    for few in (vectors(3), np.tile(vectors(3), (10, 1)), np.ones((20, 4), np.float32)):
        with pytest.raises(InputError, match=f"at least 4 different directions for {method}, got [13] in .* pca"):
            project(few, method)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="pca, tsne or umap, got 'mds'"):
        project(vectors(), "mds")
    with pytest.raises(ValueError, match=r"\[N, D\].* got shape \[0, 4\]"):
        project(np.ones((0, 4), np.float32))


@pytest.mark.parametrize(("method", "module"), [("tsne", "sklearn.manifold"), ("umap", "umap")])
def test_a_missing_package_is_named(monkeypatch, method, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'pip install -c constraints.txt -e "\.\[maps\]"'):
        project(vectors(), method)


@pytest.mark.parametrize("method", ["tsne", pytest.param("umap", marks=pytest.mark.slow)])  # UMAP compiles itself
@pytest.mark.usefixtures("one_thread")
def test_neighbors_stay_neighbors(method):
    x = two_clusters()
    try:
        points = project(x, method, seed=1)
    except ImportError as error:
        pytest.skip(str(error))
    assert points.dtype == np.float32 and gap(points) > 1
    assert (project(x, method, seed=1) == points).all()
    assert (project(x * 2, method, seed=1) == points).all()  # by cosine
    repeated = np.concatenate([np.tile(vectors(1), (20, 1)), vectors(3, seed=1)])
    opposite = np.concatenate([np.eye(4), -np.eye(4)]).astype(np.float32)
    for odd in (vectors(4), repeated, opposite):
        points = project(odd, method)
        assert points.shape == (len(odd), 2) and np.isfinite(points).all()


def test_a_map_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    names = ["$jig$_{", "慢板", None, "", "a name too long for any legend " * 3]
    labels = [names[i % 5] for i in range(60)]
    path = tmp_path / "new" / "map.png"
    draw_png(vectors(60, 2), path, labels=labels, modalities=labels, title="慢 $x_{", axes=("one", "two"))
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    picture = imread(path)
    assert picture.shape[0] > 500 and picture[..., :3].std() > 0.05
    assert [file.name for file in path.parent.iterdir()] == ["map.png"]


def test_a_picture_of_one_point_and_of_many_labels(tmp_path):
    pytest.importorskip("matplotlib")
    draw_png(np.zeros((1, 2)), tmp_path / "one.png")
    draw_png(vectors(90, 2), tmp_path / "many.svg", labels=[f"label {i % 30:02d}" for i in range(90)])
    text = (tmp_path / "many.svg").read_text()
    assert text.count("<!-- label ") == MAX_LABELS and f"<!-- {OTHER} -->" in text
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    with pytest.raises(InputError, match="map.txt: expected the name of a picture"):
        draw_png(vectors(3, 2), tmp_path / "map.txt")


def test_missing_matplotlib_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install -c constraints.txt -e "\.\[maps\]"'):
        draw_png(vectors(3, 2), tmp_path / "map.png")
    assert not list(tmp_path.iterdir())


class Page(HTMLParser):
    """A page as a browser parses it: the tags, their attributes, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "script":
            self.scripts[-1] += data


def test_a_map_is_a_page_that_needs_no_other_file(tmp_path):
    titles = ["Planxty", HOSTILE, "慢板", '"DATA"', "a\nb\ud800"]
    labels = ["air", "jig", HOSTILE, None, "jig"]
    path = tmp_path / "new" / "map.html"
    draw_html(
        vectors(5, 2), path, titles=titles, labels=labels, modalities=list("abcab"), details=titles, title=HOSTILE
    )
    text = path.read_text(encoding="utf-8")
    assert "http://" not in text and "https://" not in text and "//cdn" not in text
    page = Page(text)
    assert not {name for name, _ in page.attributes} & {"src", "href"} and page.tags.count("link") == 0
    assert len(page.scripts) == 2  # the data and the code: no title has begun a third
    data = json.loads(page.scripts[0])
    titles[4] = "a\nb?"  # a byte of a file name that is not UTF-8
    assert data["titles"] == titles and data["details"] == titles and data["title"] == HOSTILE
    assert data["labels"][0] == "jig" and [data["labels"][i] for i in data["label"]] == [*labels[:3], "no label", "jig"]
    assert [data["modalities"][i] for i in data["modality"]] == list("abcab")
    assert [file.name for file in path.parent.iterdir()] == ["map.html"]


def test_the_page_keeps_proportions(tmp_path):
    draw_html(np.array([[1, 5], [3, 5], [1, 6]]), tmp_path / "map.html", titles=["a", "b", "c"])
    data = json.loads(Page((tmp_path / "map.html").read_text()).scripts[0])
    assert data["points"] == [[0, 0], [1, 0], [0, 0.5]]


@pytest.mark.parametrize(
    ("points", "titles", "message"),
    [
        (np.zeros((2, 2)), ["a"], "expected 2 titles, one per point, got 1"),
        (np.full((1, 2), np.nan), ["a"], "finite points"),
        (np.zeros((2, 3)), ["a", "b"], r"got shape \[2, 3\]"),
        (np.zeros((0, 2)), [], "at least one"),
    ],
)
def test_bad_points_leave_no_page(tmp_path, points, titles, message):
    with pytest.raises(ValueError, match=message):
        draw_html(points, tmp_path / "map.html", titles=titles)
    assert not list(tmp_path.iterdir())


# Acts as a reader would, and stores what it sees in attributes that the test reads.
READER = """
<script>
addEventListener("error", (event) => seen("error", event.message));
const seen = (name, value) => { document.documentElement.dataset[name] = value; };
const press = (target, key) => target.dispatchEvent(new KeyboardEvent("keydown", { key }));
setTimeout(() => {
  seen("start", element("output").textContent);
  search.value = "PLANXTY e";
  search.dispatchEvent(new Event("input"));
  seen("found", element("output").textContent);
  press(search, "Enter");
  seen("tip", tip.textContent);
  press(search, "Escape");
  const [x, y] = place(2), box = canvas.getBoundingClientRect();
  canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + x + 3, clientY: box.top + y }));
  seen("hover", tip.textContent);
  canvas.dispatchEvent(new WheelEvent("wheel", { clientX: box.left + x, clientY: box.top + y, deltaY: -300 }));
  seen("zoom", view.zoom > 1.5 && Math.hypot(place(2)[0] - x, place(2)[1] - y) < 1);  // the event has whole pixels
  const [before] = place(2);
  press(canvas, "ArrowLeft");
  seen("moved", Math.round(place(2)[0] - before));
  element("aside button").click();
  seen("hidden", element("output").textContent);
  element("#whole").click();
  seen("whole", element("output").textContent + " " + view.zoom);
  seen("legend", [...document.querySelectorAll("aside button span")].map((each) => each.textContent).join("|"));
  draw();
  seen("inked", context.getImageData(0, 0, canvas.width, canvas.height).data.some((value) => value > 0));
}, 300);
</script>
"""


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path):
    path = tmp_path / "map.html"
    titles = ["Plánxty Eleanor", "Planxty Irwin", "<b>Gavotte</b>"]
    draw_html(
        np.array([[0, 0], [1, 0], [0.5, 1]]),
        path,
        titles=titles,
        labels=["air", "air", "dance"],
        modalities=["score", "score", "MIDI"],
        details=["", "", "in D\n1720"],
        title=HOSTILE,
    )
    path.write_text(path.read_text().replace("</body>", READER + "</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=900,600", "--lang=en"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    page = Page(done.stdout)
    seen = {name: value for name, value in page.attributes if name.startswith("data-")}
    assert {name: seen[f"data-{name}"] for name in ("start", "found", "tip", "hover", "zoom", "moved", "inked")} == {
        "start": "3 of 3 points",
        "found": "1 found",
        "tip": "Plánxty Eleanorair · score",
        "hover": "<b>Gavotte</b>dance · MIDI\nin D\n1720",
        "zoom": "true",
        "moved": "40",
        "inked": "true",
    }
    assert seen["data-hidden"] == "1 of 3 points" and seen["data-whole"] == "3 of 3 points 1"
    assert seen["data-legend"] == "air|dance|score|MIDI" and "data-error" not in seen

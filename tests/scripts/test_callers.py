"""What other projects do with a clone in a folder called `clamp3`: the calls and commands that they make, as they make
them, at the sizes of the tiny models, against golden values. The calls of MERT's modules are in test_mert_callers.py.
"""

import importlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sound import sine, write
from transformers import AutoModel, BertConfig, GPT2Config

ROOT = Path(__file__).parents[2]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
COMMANDS = ("clamp3_embd.py", "clamp3_search.py", "clamp3_score.py", "clamp3_eval.py")


@pytest.fixture(scope="module")
def clone(golden, tiny_weights, tiny_geometry, tmp_path_factory) -> Path:
    """A clone in a folder `clamp3`, its config.py edited to the tiny sizes, its weights under the short name."""
    root = tmp_path_factory.mktemp("project") / "clamp3"
    ignore = shutil.ignore_patterns("__pycache__", "*.safetensors", "weights_*", "logs_*", "*.egg-info")
    for folder in ("code", "preprocessing", "retrieval"):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignore)
    for command in COMMANDS:
        shutil.copy(ROOT / command, root)
    edit(root / "code/config.py", **{name.upper(): value for name, value in tiny_geometry.to_dict().items()})
    shutil.copy(tiny_weights / "clamp3_tiny.pth", root / "code/weights_clamp3_saas.pth")
    return root


def edit(config: Path, **values) -> None:
    """Sets values of a config.py as somebody would, a line each."""
    lines = config.read_text().split("\n")
    for number, line in enumerate(lines):
        name = line.partition(" = ")[0]
        if name in values:
            lines[number] = f"{name} = {values[name]!r}"
    config.write_text("\n".join(lines))


@pytest.fixture(scope="module")
def utils(clone):
    """clamp3.code.utils of the clone, imported as a project does that lies beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(clone.parent)
        yield importlib.import_module("clamp3.code.utils")
    for name in [name for name in sys.modules if name.partition(".")[0] == "clamp3"]:
        del sys.modules[name]


def shell(folder: Path, *words, **environment) -> subprocess.CompletedProcess:
    """Runs a Python command as another program does: offline, with standard input closed."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "error", **environment}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def load_arrays(path: Path) -> dict[str, torch.Tensor]:
    with np.load(path) as arrays:
        return {key: torch.as_tensor(value) for key, value in arrays.items()}


def bert(hidden_size: int, layers: int, length: int) -> BertConfig:
    return BertConfig(
        vocab_size=1,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        intermediate_size=hidden_size * 4,
        max_position_embeddings=length,
    )


@pytest.fixture
def build(utils):
    """Builds the model by hand, with the constants that `utils` has of config.py."""

    def build(**options):
        return utils.CLaMP3Model(
            audio_config=bert(utils.AUDIO_HIDDEN_SIZE, utils.AUDIO_NUM_LAYERS, utils.MAX_AUDIO_LENGTH),
            symbolic_config=bert(utils.M3_HIDDEN_SIZE, utils.PATCH_NUM_LAYERS, utils.PATCH_LENGTH),
            **{"text_model_name": utils.TEXT_MODEL_NAME, "hidden_size": utils.CLAMP3_HIDDEN_SIZE, **options},
        )

    return build


@pytest.fixture
def model(build, tiny_weights):
    """The model by hand, with the weights of a checkpoint, in evaluation mode."""
    model = build(global_rank=None, world_size=None, load_m3=True)
    model.load_state_dict(torch.load(tiny_weights / "clamp3_tiny.pth")["model"])
    return model.eval()


# ------------------------------------------------------------------------------------ in process

STAR = """
from clamp3.code.config import *
config = {name: value for name, value in globals().items() if name.isupper()}
from clamp3.code.utils import *
assert config and config == {name: globals()[name] for name in config}
assert MAX_AUDIO_LENGTH == 128 and M3_HIDDEN_SIZE == 64 and CLAMP3_VARIANT == "saas"
for name in ("CLaMP3Model", "M3Model", "M3PatchEncoder", "M3Patchilizer", "M3TokenDecoder", "ClipLoss"):
    assert isinstance(globals()[name], type), name
for name in ("split_data", "mask_patches", "remove_instrument_info"):
    assert callable(globals()[name]), name
from clamp3.preprocessing.midi.batch_midi2mtf import load_midi
print(load_midi("tune.mid").partition("\\n")[0])
"""
FLAT = "from config import *; from utils import *; print(M3Patchilizer().decode([[1, 65, 2]]), PATCH_SIZE)"


def test_names_by_star_from_a_folder_and_from_the_path(clone, golden, tmp_path):
    (tmp_path / "tune.mid").write_bytes((golden / "midi/in/hm_type0.mid").read_bytes())
    ran = shell(tmp_path, "-c", STAR, PYTHONPATH=str(clone.parent))
    assert ran.returncode == 0 and ran.stdout.startswith("ticks_per_beat "), ran.stderr
    ran = shell(tmp_path, "-c", FLAT, PYTHONPATH=str(clone / "code"))
    assert ran.stdout == "A 64\n", ran.stderr
    assert os.listdir(tmp_path) == ["tune.mid"]


def test_config_has_settings_alone(utils, clone):
    names = vars(importlib.import_module("clamp3.code.config"))
    assert all(name.isupper() for name in names if not name.startswith("_"))


def test_code_stays_pythons_own():
    assert not (ROOT / "code/__init__.py").exists()


def test_a_model_by_hand_begins_with_the_pretrained_text_encoder(build, utils):
    pretrained = AutoModel.from_pretrained(utils.TEXT_MODEL_NAME).state_dict()
    found = build(load_m3=False).text_model.state_dict()
    assert found.keys() == pretrained.keys()
    assert all(torch.equal(found[name], value) for name, value in pretrained.items())


def test_a_text_encoder_without_weights_is_said_once(build, utils, tmp_path):
    shutil.copy(Path(utils.TEXT_MODEL_NAME, "config.json"), tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            build(text_model_name=str(tmp_path))
    (warning,) = caught
    assert f"the text encoder begins with random weights: those of {tmp_path}" in str(warning.message)


@pytest.mark.parametrize("modality", ["symbolic", "audio"])
@torch.inference_mode()
def test_features_and_loss_by_keyword_and_position(modality, model, golden):
    batch = load_arrays(golden / f"model/losses/clamp3_{modality}.npz")
    text = {"text_inputs": batch["text_inputs"], "text_masks": batch["text_masks"]}
    music = {f"{modality}_inputs": batch["music_inputs"], f"{modality}_masks": batch["music_masks"]}
    encode_music = getattr(model, f"get_{modality}_features")
    for encode, inputs, expected in (
        (model.get_text_features, text, batch["text_global"]),
        (encode_music, music, batch["music_global"]),
    ):
        ids, masks = inputs.values()
        assert_close(encode(**inputs, get_global=True), expected)
        assert_close(encode(ids, masks, True), expected)
        for mask_type in (torch.int64, torch.int32, torch.float64):
            assert_close(encode(ids, masks.to(mask_type), get_global=True), expected)
        for type_ in (torch.int16, torch.int32, torch.int64) if not ids.is_floating_point() else (torch.float64,):
            assert_close(encode(ids.to(type_), masks, get_global=True), expected)
        assert encode(**inputs, get_global=False).shape[:2] == ids.shape[:2]
    loss = model(*text.values(), *music.values(), modality)
    assert_close(loss, batch["loss"], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_the_parts_of_a_transformers_model(model, golden):
    assert model.device == model.symbolic_model.device == torch.device("cpu")
    assert model.config is model.symbolic_model.config and model.config.hidden_size == 64
    batch = load_arrays(golden / "model/losses/clamp3_audio.npz")
    inputs, masks = batch["music_inputs"], batch["music_masks"]
    states = model.audio_model(inputs_embeds=inputs, attention_mask=masks)[0]
    assert_close(states, model.get_audio_features(audio_inputs=inputs, audio_masks=masks))


@torch.inference_mode()
def test_hidden_states_by_name_attribute_and_index(utils, golden, tiny_weights, tiny_m3):
    batch = load_arrays(golden / "model/losses/m3.npz")
    encoder = utils.M3PatchEncoder(bert(utils.M3_HIDDEN_SIZE, utils.PATCH_NUM_LAYERS, utils.PATCH_LENGTH)).eval()
    encoder.load_state_dict(tiny_m3.encoder.state_dict())
    output = encoder(batch["input_patches"], batch["input_masks"])
    assert output["last_hidden_state"] is output.last_hidden_state is output[0]
    assert output[0].shape == (4, 90, 64)


def decoder_config(utils) -> GPT2Config:
    return GPT2Config(
        vocab_size=128,
        n_positions=utils.PATCH_SIZE,
        n_embd=utils.M3_HIDDEN_SIZE,
        n_layer=utils.TOKEN_NUM_LAYERS,
        n_head=utils.M3_HIDDEN_SIZE // 64,
        n_inner=utils.M3_HIDDEN_SIZE * 4,
        bos_token_id=1,
        eos_token_id=2,
    )


def test_m3_by_hand(utils, golden, tiny_weights):
    batch = load_arrays(golden / "model/losses/m3.npz")
    inputs = [batch[name] for name in ("input_patches", "input_masks", "selected_indices", "target_patches")]
    encoder_config = bert(utils.M3_HIDDEN_SIZE, utils.PATCH_NUM_LAYERS, utils.PATCH_LENGTH)
    model = utils.M3Model(encoder_config, decoder_config(utils))
    model.load_state_dict(torch.load(tiny_weights / "m3_tiny.pth")["model"])
    assert model.train()(*inputs)["logits"].shape[1:] == (64, 128)
    output = model.eval()(*inputs)
    assert output["loss"] is output.loss and output["logits"] is output.logits
    assert_close(output.loss, batch["loss"], atol=1e-4, rtol=0)
    assert_close(output["logits"][0], batch["logits_first_selected"])


@torch.inference_mode()
def test_the_decoder_gives_probabilities_of_the_next_code(utils, golden, tiny_m3):
    batch = load_arrays(golden / "model/losses/m3.npz")
    decoder = utils.M3TokenDecoder(decoder_config(utils)).eval()
    decoder.load_state_dict(tiny_m3.decoder.state_dict())
    selected = batch["selected_indices"].bool()
    states = tiny_m3.encoder(batch["input_patches"], batch["input_masks"])[0][selected]
    tokens = batch["target_patches"][selected][0]
    expected = batch["logits_first_selected"].softmax(-1)
    for count in (1, 2, 5):
        found = decoder.generate(states[0], tokens[:count])
        assert isinstance(found, np.ndarray) and found.shape == (128,) and found.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(found, expected[count - 1], **CLOSE)


def test_the_patchilizer(utils, golden):
    patchilizer = utils.M3Patchilizer()
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id")
    assert [getattr(patchilizer, name) for name in names] == [0, 1, 2, 3]
    text = (golden / "abc/interleaved/bach__bwv154.3.abc").read_text("utf-8")
    with np.load(golden / "patches/patches.npz") as cases:
        expected = cases["bach__bwv154.3/plain"]
    patches = patchilizer.encode(text, patch_size=64, add_special_patches=False, truncate=False, random_truncate=False)
    assert isinstance(patches, list) and np.array_equal(patches[: len(expected)], expected)
    special = patchilizer.encode(text, add_special_patches=True)
    assert special == [[1] * 64, *patches, [1] + [2] * 63]
    assert len(patchilizer.encode(text * 40, truncate=True)) == utils.PATCH_LENGTH
    assert len(patchilizer.encode(text * 40, random_truncate=True)) == utils.PATCH_LENGTH
    assert {len(patch) for patch in patchilizer.encode(text, patch_size=32, add_special_patches=True)} == {32}
    assert patchilizer.decode(patches) == "".join(map(patchilizer.patch2bar, patches))
    bars = patchilizer.split_bars(["C2 D2|E2 F2", ":|G4|]\n"])
    assert bars == ["C2 D2|", "E2 F2:|", "G4|]"]
    assert patchilizer.bar2patch("C|") == [1, ord("C"), ord("|"), 2] + [0] * 60
    assert patchilizer.bar2patch("C|", 3) == [1, ord("C"), ord("|")]
    assert patchilizer.patch2bar(patchilizer.bar2patch("C2 D2|")) == "C2 D2|"


def test_the_loss_of_two_sets(utils):
    torch.manual_seed(0)
    a, b = torch.randn(5, 8), torch.randn(5, 8)
    options = {"local_loss": False, "gather_with_grad": True, "cache_labels": False, "rank": 0, "world_size": 1}
    loss = utils.ClipLoss(**options, use_horovod=False)
    logits, target = 2 * a @ b.T, torch.arange(5)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
    assert_close(loss(a, b, 2), expected)
    assert_close(loss(a, b, 2, output_dict=True)["contrastive_loss"], expected)


def test_what_training_loops_call(utils, golden):
    items = list(range(200))
    train, evaluation = utils.split_data(items)
    assert len(evaluation) == int(200 * utils.EVAL_SPLIT) and sorted(train + evaluation) == items
    assert len(utils.split_data(items, eval_ratio=0.25)[1]) == 50 and items == list(range(200))
    case = next(iter(json.loads((golden / "instrument/cases.json").read_text()).values()))
    assert utils.remove_instrument_info(case["in"]) == case["out"]
    patchilizer = utils.M3Patchilizer()
    patches = patchilizer.encode("K:C\nC2|D2|E2|F2|G2|A2|\n", add_special_patches=True)
    seen = set()
    for seed in range(100):
        random.seed(seed)
        inputs, selected = utils.mask_patches(torch.tensor(patches), patchilizer, "train")
        assert inputs.shape == (9, 64) and selected.shape == (9,) and selected.sum() == 5  # ceil(.45 * 9)
        rows = selected.bool()
        assert torch.equal(inputs[~rows], torch.tensor(patches)[~rows])
        if (inputs[rows] == patchilizer.mask_token_id).all():
            seen.add("masked")
        elif torch.equal(inputs, torch.tensor(patches)):
            seen.add("left")
        else:
            seen.add("shuffled")
    assert seen == {"masked", "shuffled", "left"}
    inputs, selected = utils.mask_patches(patches, patchilizer, "eval")
    assert inputs.tolist() == patches and selected.sum() == 5


def assert_close(found, expected, atol=CLOSE["atol"], rtol=CLOSE["rtol"]):
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)


# ------------------------------------------------------------------------------------ from a shell


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """The working folder of a caller: not the clone's."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture(scope="module")
def mixed(golden, tmp_path_factory) -> Path:
    """A folder of texts, scores and MIDI of golden vectors, mixed, one of them below a folder."""
    folder = tmp_path_factory.mktemp("mixed") / "music"
    for kind, names in (("txt", ["short", "tokens_300"]), ("abc", ["chorale"]), ("mtf", ["random"])):
        for name in names:
            target = folder / ("below" if kind == "mtf" else "") / f"{name}.{kind}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(golden / f"model/in/{kind}/{name}.{kind}", target)
    return folder


MIXED = {"short": "txt/short", "tokens_300": "txt/tokens_300", "chorale": "abc/chorale", "below/random": "mtf/random"}


def check_features(folder: Path, golden: Path, kind: str) -> None:
    with np.load(golden / f"model/expected_clamp3_{kind}.npz") as expected:
        for name, case in MIXED.items():
            np.testing.assert_allclose(np.load(folder / f"{name}.npy"), expected[case], **CLOSE, err_msg=name)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"space.json", *(f"{name}.npy" for name in MIXED)}


def test_clamp3_embd(clone, golden, mixed, elsewhere):
    for flags, kind in ((["--get_global"], "global"), ([], "temporal")):
        ran = shell(elsewhere, clone / "clamp3_embd.py", mixed, kind, *flags)
        assert ran.returncode == 0 and ran.stdout == "4 done, 0 skipped, 0 failed\n", ran.stderr
        check_features(elsewhere / kind, golden, kind)
    assert sorted(os.listdir(elsewhere)) == ["global", "temporal"]


def test_clamp3_embd_takes_every_kind_of_raw_file(clone, golden, elsewhere):
    (elsewhere / "in").mkdir()
    for source in ("abc/xml/handmade__chords.musicxml", "midi/in/hm_type0.mid"):
        shutil.copy(golden / source, elsewhere / "in")
    (elsewhere / "in/air.txt").write_text("a slow air")
    write(elsewhere / "in/tone.wav", sine(2.0, 22_050, 440), 22_050, "pcm_s16le")
    ran = shell(elsewhere, ROOT / "clamp3_embd.py", "in", "out", "--get_global", CLAMP3_VARIANT="mini")
    assert ran.returncode == 0, ran.stderr
    names = {"air.npy", "handmade__chords.npy", "hm_type0.npy", "tone.npy", "space.json"}
    assert set(os.listdir(elsewhere / "out")) == names
    assert np.load(elsewhere / "out/tone.npy").shape == (1, 192)


def test_clamp3_search(clone, golden, mixed, elsewhere):
    (elsewhere / "query.txt").write_bytes((mixed / "short.txt").read_bytes())
    ran = shell(elsewhere, clone / "clamp3_search.py", "query.txt", mixed, "--top_k", 3)
    assert ran.returncode == 0, ran.stderr
    first, *lines = ran.stdout.splitlines()
    assert first == "Top 3 results among 4 candidates:"
    with np.load(golden / "model/expected_clamp3_global.npz") as arrays:
        vectors = {name: arrays[case][0] / np.linalg.norm(arrays[case]) for name, case in MIXED.items()}
    expected = sorted(((float(vectors["short"] @ vector), name) for name, vector in vectors.items()), reverse=True)
    assert lines == [f"{name} {similarity:.4f}" for similarity, name in expected[:3]]
    assert os.listdir(elsewhere) == ["query.txt"]


def test_clamp3_score_and_clamp3_eval(clone, mixed, elsewhere):
    ran = shell(elsewhere, clone / "clamp3_score.py", mixed, mixed)
    assert ran.returncode == 0 and "Avg. pairwise similarity: 1.0\n" in ran.stdout, ran.stderr
    lines = (elsewhere / "inference/pairwise_similarities.jsonl").read_text().splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"query", "reference", "similarity"}] * 4
    ran = shell(elsewhere, clone / "clamp3_score.py", mixed, mixed, "--group")
    assert re.search(r"(?m)^Group similarity: 1\.0$", ran.stdout), ran.stderr
    ran = shell(elsewhere, clone / "clamp3_eval.py", mixed, mixed)
    assert ran.returncode == 0, ran.stderr
    for name in ("MRR", "Hit@1", "Hit@10", "Hit@100"):
        assert f"\n{name}: 1.0\n" in ran.stdout
    assert len((elsewhere / "inference/retrieval_ranks.jsonl").read_text().splitlines()) == 4
    assert os.listdir(elsewhere) == ["inference"]


def test_bad_input_is_named_with_status_1_and_nothing_half_written(clone, mixed, elsewhere, golden):
    (elsewhere / "empty").mkdir()
    (elsewhere / "bad").mkdir()
    (elsewhere / "bad/bad.mid").write_text("words")
    for words, said in (
        (("clamp3_embd.py", "gone", "out"), "gone: expected an input folder or file"),
        (("clamp3_embd.py", "empty", "out"), "empty: expected files ending in"),
        (("clamp3_search.py", "gone.txt", mixed), "gone.txt: expected an input folder or file"),
        (("clamp3_search.py", "bad/bad.mid", mixed), "bad.mid: expected a MIDI file"),
        (("clamp3_eval.py", "bad", mixed), "none of its 1 files could be embedded"),
    ):
        ran = shell(elsewhere, clone / words[0], *words[1:])
        assert ran.returncode == 1 and said in ran.stderr and "Traceback" not in ran.stderr, (words, ran.stderr)
        assert sorted(os.listdir(elsewhere)) == ["bad", "empty"]


def test_weights_of_another_geometry_are_refused(clone, mixed, elsewhere, tmp_path):
    code = tmp_path / "clamp3/code"
    shutil.copytree(clone / "code", code)
    shutil.copy(clone / "clamp3_embd.py", tmp_path / "clamp3")
    edit(code / "config.py", CLAMP3_HIDDEN_SIZE=128)
    ran = shell(elsewhere, tmp_path / "clamp3/clamp3_embd.py", mixed, "out")
    assert ran.returncode == 1 and "weights_clamp3_saas.pth: these weights are of another geometry" in ran.stderr
    assert not os.listdir(elsewhere)


VARIANTS = """
import sys
from clamplib import CLaMP3Encoder
print(CLaMP3Encoder.from_pretrained().space["variant"])
"""


def test_every_door_begins_with_the_variant_of_line_66(clone, mixed, elsewhere, tmp_path):
    code = tmp_path / "clamp3/code"
    shutil.copytree(clone / "code", code)
    shutil.copy(clone / "clamp3_embd.py", tmp_path / "clamp3")
    subprocess.run(["sed", "-i", "s/weights_clamp3_saas/weights_clamp3_c2/", code / "config.py"], check=True)
    (code / "weights_clamp3_saas.pth").rename(code / "weights_clamp3_c2.pth")
    text = elsewhere / "text"
    text.mkdir()
    shutil.copy(mixed / "short.txt", text)
    path = {"PYTHONPATH": str(code)}  # before the library that is installed
    doors = [
        shell(elsewhere, code / "extract_clamp3.py", text, "scripts", "--get_global", **path),
        shell(elsewhere, tmp_path / "clamp3/clamp3_embd.py", text, "root", "--get_global"),
        shell(elsewhere, "-m", "clamplib.app.cli", "embed", text, "command", **path),
    ]
    assert [door.returncode for door in doors] == [0, 0, 0], doors
    vectors = [np.load(elsewhere / name / "short.npy") for name in ("scripts", "root", "command")]
    assert np.array_equal(vectors[0], vectors[1]) and np.array_equal(vectors[0], vectors[2])
    spaces = [json.loads((elsewhere / name / "space.json").read_text()) for name in ("scripts", "root", "command")]
    assert {space["variant"] for space in spaces} == {"c2"}
    assert shell(elsewhere, "-c", VARIANTS, **path).stdout == "c2\n"
    assert shell(elsewhere, "-c", VARIANTS, CLAMP3_VARIANT="mini").stdout == "mini\n"

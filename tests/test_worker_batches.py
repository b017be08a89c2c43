"""What keeps a worker's models busy: batches of like images, decoding ahead, finishing behind, the size of a batch."""

import gc
import json
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builds import STAND_IN, build_here, digests, make_config, make_input
from hypothesis import example, given
from hypothesis import strategies as st
from test_supervise import Pool, supervise, units

from patchmint.annotate.models import AnnotationModels, ModelInputs
from patchmint.compute.memory import even_parts, peak_memory
from patchmint.config import AnnotatorConfig
from patchmint.config.build import LocalRunner, RayRunner
from patchmint.errors import ConfigError, InputError, StorageError
from patchmint.images.decode import decode_image
from patchmint.pipeline.orders import Died, Done, Order, UnitResult
from patchmint.pipeline.pools.serve import ServedWorker
from patchmint.pipeline.worker import batches, prepare, work
from patchmint.pipeline.worker.batches import like_batches
from patchmint.pipeline.worker.finish import Finisher
from patchmint.pipeline.worker.prepare import Prepared, PreparedImage, Preparer
from patchmint.samples import ImageRef, PlannedSample, Reject, SourceSample, SourceText
from patchmint.shards.plan import Unit
from patchmint.types import Text


def batched(items, count, *, ahead=4, weight=lambda item: 1, most=1 << 60):
    return list(like_batches(enumerate(items), lambda: count, lambda item: item, weight, ahead=ahead, most=most))


@given(
    st.lists(st.integers(0, 5), max_size=150),
    st.integers(1, 7),
    st.integers(1, 5),
    *[st.integers(1, 60)] * 2,
    st.booleans(),
)
def test_batches_hold_each_item_once_and_leave_none_behind(keys, count, ahead, most, most_of_a_batch, are_documents):
    """Documents have one to six images here."""
    images = (lambda key: 1 + key) if are_documents else (lambda key: 1)
    taken = 0

    def coming():
        nonlocal taken
        for key in keys:
            taken += 1
            yield key

    left = set(range(len(keys)))
    limits = {"ahead": ahead, "most": most, "most_of_a_batch": most_of_a_batch, "count": images}
    for batch in like_batches(enumerate(coming()), lambda: count, lambda key: key, lambda key: key, **limits):
        numbers = [number for number, _ in batch]
        assert numbers == sorted(numbers)
        assert all(keys[number] == key for number, key in batch)
        assert len(batch) == 1 or sum(images(key) for _, key in batch) <= count
        assert len(batch) == 1 or sum(key for _, key in batch) <= most_of_a_batch
        assert min(left) == numbers[0], "the oldest was left behind"
        assert taken - min(left) <= ahead * count, "further ahead than allowed"
        assert left >= set(numbers)
        left -= set(numbers)
    assert not left


@example([(False, 0), (True, 0), (True, 0)], 2, 1, 1, 1, 0)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=80),
    st.integers(1, 7),
    st.integers(1, 5),
    *[st.integers(1, 60)] * 2,
    st.integers(0, 30),
)
def test_a_resumed_run_makes_the_batches_that_are_left(items, count, ahead, most, most_of_a_batch, finished):
    """Rejects leave gaps in the numbers. A batch was in work when the run was interrupted, and is lost."""

    def made(numbers, **state):
        def coming():
            for number in numbers:
                looked.append(number)
                yield number, items[number][1]

        limits = {"ahead": ahead, "most": most, "most_of_a_batch": most_of_a_batch, "count": lambda key: 1 + key % 3}
        return like_batches(coming(), lambda: count, lambda key: key, lambda key: key, **state, **limits)

    numbers, looked = [number for number, (is_sample, _) in enumerate(items) if is_sample], []
    whole = list(made(numbers))
    looked.clear()
    interrupted = made(numbers)
    done = {number for batch in islice(interrupted, finished) for number, _ in batch}
    next(interrupted, None)
    left = [number for number in numbers if number not in done]
    last = max(looked, default=-1)
    assert list(made(left, looked=last, waiting=sum(number <= last for number in left))) == whole[finished:]


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(1, 6), st.integers(1, 20))
def test_a_batch_is_cut_into_pieces_that_are_neither_too_long_nor_too_heavy(weights, size, most):
    cut = list(batches.pieces(weights, size, lambda weight: weight, most))
    assert [weight for piece in cut for weight in piece] == weights
    assert all(len(piece) <= size and (len(piece) == 1 or sum(piece) <= most) for piece in cut)
    for piece, following in pairwise(cut):
        assert len(piece) == size or sum(piece) + following[0] > most, "it could be longer"


def test_images_that_are_alike_stand_together():
    alternating = [0, 1] * 16
    assert all(len({key for _, key in batch}) == 1 and len(batch) == 8 for batch in batched(alternating, 8))
    assert [number for number, _ in batched(alternating, 8)[0]] == list(range(0, 16, 2))
    # where likeness isn't asked for, as they come
    assert [[number for number, _ in batch] for batch in batched(alternating, 8, ahead=1)][1] == list(range(8, 16))
    # although nothing is alike, batches are full
    assert [len(batch) for batch in batched(range(30), 8)] == [8, 8, 8, 6]


def test_heavy_images_are_not_hoarded():
    taken = []
    heavy = (taken.append(number) or number % 2 for number in range(64))
    first = next(like_batches(enumerate(heavy), lambda: 4, lambda key: key, lambda key: 100, ahead=4, most=500))
    assert [number for number, _ in first] == [0, 1, 2, 4]
    assert len(taken) == 5


def test_a_batch_that_was_halved_makes_those_after_it_smaller():
    sizes = []
    for batch in like_batches(enumerate(range(40)), lambda: 2 if sizes else 8, lambda _: 0, lambda _: 0):
        sizes.append(len(batch))  # noqa: PERF401 (what is there decides the size of the next)
    assert sizes[:3] == [8, 2, 2]
    assert sum(sizes) == 40


def tried(seconds, memory):
    """A `measure` of these models, and the sizes that it was asked for."""
    asked = []

    def measure(images):
        asked.append(images)
        return None if memory(images) > 100 else batches._Trial(seconds(images), memory(images))

    return measure, asked


@pytest.mark.parametrize(
    ("seconds", "memory", "budget", "found", "asked"),
    [
        (lambda n: 1 + 0.01 * n, lambda n: 1, 100, 64, [16, 32, 64]),  # the most there is
        (lambda n: 1 + 0.01 * n, lambda n: 2 * n, 80, 32, [16, 32]),  # what isn't going to fit isn't tried
        (lambda n: 1 + 0.01 * n, lambda n: n * n / 6, 100, 16, [16, 32]),  # memory ran out at 32
        (lambda n: 1 + 0.01 * n, lambda n: n * n / 11, 90, 16, [16, 32]),  # 32 fitted, but over the budget
        (lambda n: 0.1 * n, lambda n: 1, 100, 16, [16, 32]),  # no gain
        (lambda n: max(1, n / 32), lambda n: 1, 100, 32, [16, 32, 64]),  # no gain from 64 on
        (lambda n: 1 + 0.01 * n, lambda n: 20 * n, 100, 4, [16, 8, 4]),  # memory is short, and what fits is enough
        (lambda n: 1 + 0.01 * n, lambda n: 9 * n, 80, 8, [16, 8]),  # over the budget
        (lambda n: 1, lambda n: 1000, 100, 1, [16, 8, 4, 2]),  # not even two
    ],
)
def test_a_batch_is_halved_until_it_fits_and_doubled_while_it_pays(seconds, memory, budget, found, asked):
    measure, sizes = tried(seconds, memory)
    assert batches._largest_that_pays(measure, budget) == found
    assert sizes == asked


@pytest.mark.parametrize(("input_bytes", "size"), [(0, 8), (5_000_000, 8), (1_000_000, 16), (400_000, 32)])
def test_the_configured_size_counts_and_a_cpu_has_more_where_models_take_images_small(input_bytes, size):
    models = SimpleNamespace(prepare=lambda image: SimpleNamespace(nbytes=input_bytes))
    assert batches.choose_batch_size(models, LocalRunner(batch_size=3), "cuda") == 3
    assert batches.choose_batch_size(models, LocalRunner(), "cpu") == size


@pytest.mark.parametrize(
    ("runner", "size"),
    [(LocalRunner(), 16), (LocalRunner(workers=2), 8), (RayRunner(num_gpus=0.25), 4), (RayRunner(num_gpus=2), 16)],
)
def test_a_gpu_is_tried_out_and_shared(monkeypatch, runner, size):
    """Models that take 3 bytes an image of 64 free ones: a share of 0.8 holds 16."""
    held = []
    models = SimpleNamespace(rehearse=lambda images, *_: held.append(3 * len(images)), prepare=lambda image: None)
    gpu = fake_gpu(mem_get_info=lambda device: (64, 80), max_memory_allocated=lambda device: 5 + held[-1])
    clock = iter(range(1000))
    monkeypatch.setattr(batches.time, "perf_counter", lambda: next(clock))
    assert batches.choose_batch_size(models, runner, "cuda:0", gpu) == size


def fake_gpu(**functions):
    """One GPU, in which models hold 5 bytes."""
    functions |= dict.fromkeys(("synchronize", "reset_peak_memory_stats"), lambda device: None)
    return SimpleNamespace(
        memory_allocated=lambda device: 5, device_count=lambda: 1, empty_cache=lambda: None, **functions
    )


def test_running_out_of_memory_ends_the_trials():
    def rehearse(images, texts, inputs, boxes):
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory (a test's)")

    models = SimpleNamespace(rehearse=rehearse, prepare=lambda image: None)
    gpu = fake_gpu(max_memory_allocated=lambda device: 7)
    assert batches._tried(models, 2, "cuda", gpu).bytes == 2
    assert batches._tried(models, 4, "cuda", gpu) is None


def test_a_trial_does_the_work_of_texts_and_boxes(monkeypatch):
    """In noise nothing is found, but the masker has its part of time and memory."""
    monkeypatch.setattr(batches, "_LARGEST", (40, 60))
    models, asked = AnnotationModels.load(AnnotatorConfig.parse({"models": "untrained-tiny"}), "cpu"), {}

    def note(owner, name, count):
        original = getattr(owner, name)
        noted = lambda *given, **named: asked.update({name: count(*given)}) or original(*given, **named)  # noqa: E731
        monkeypatch.setattr(owner, name, noted)

    note(models.segmenter.detector, "detect", lambda images, texts, *_: [len(each) for each in texts])
    note(models.segmenter.masker, "masks", lambda images, boxes: [len(each) for each in boxes])
    note(models.tokenizers["vqgan"], "tokenize", len)
    assert batches._tried(models, 2, "cpu", fake_gpu(max_memory_allocated=lambda device: 9)).bytes == 4
    assert asked == {"detect": [5, 5], "masks": [50, 50], "tokenize": 2}


def test_a_batch_that_was_halved_grows_again_ever_later():
    size = batches.BatchSize(16)
    size.ran_out(16)
    size.ran_out(8)
    seen = [size.now]
    for _ in range(2):
        for _ in range(200):
            size.went_well()
            seen.append(size.now)
        size.ran_out(16)
    steps = [place for place in range(1, len(seen)) if seen[place] != seen[place - 1]]
    assert [seen[place] for place in steps] == [8, 16, 8, 16]
    assert steps == [64, 128, 201, 201 + 127]
    size.ran_out(1)
    assert size.now == 1


def test_a_worker_lets_a_gpus_memory_grow_before_it_asks_for_one(monkeypatch):
    seen = []

    def pick(device, slot):
        seen.append((os.environ.get("PYTORCH_ALLOC_CONF"), os.environ.get("PYTORCH_CUDA_ALLOC_CONF")))
        raise ConfigError("there is none")

    monkeypatch.setattr("patchmint.compute.devices.pick_device", pick)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")  # so that it is as before afterwards
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    ServedWorker(0).load(SimpleNamespace(logs={}, run_id="run"), "cuda", 1)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native")
    ServedWorker(0).load(SimpleNamespace(logs={}, run_id="run"), "cuda", 1)
    assert seen == [("expandable_segments:True", None), (None, "backend:native")]


def test_parts_are_even():
    for count, most, sizes in ((16, 12, [8, 8]), (10, 9, [5, 5]), (9, 9, [9]), (8, 7, [4, 4]), (7, 3, [3, 2, 2])):
        assert [part.stop - part.start for part in even_parts(count, most)] == sizes
        assert [place for part in even_parts(count, most) for place in range(count)[part]] == list(range(count))
    assert list(even_parts(0, 3)) == []
    assert len(list(even_parts(3, 0))) == 3


def test_peak_memory_is_of_this_process_and_grows():
    before = peak_memory()
    block = bytearray(300_000_000)
    assert before > 10_000_000
    assert peak_memory() >= before
    assert peak_memory() >= len(block)


class Slow:
    """A source whose images are read when it is allowed; it counts them."""

    extended = None

    def __init__(self, jpeg):
        self.jpeg, self.read, self.allowed = jpeg, [], threading.Event()
        self.allowed.set()

    def read_image(self, image):
        assert self.allowed.wait(20)
        self.read.append(image.path)
        return self.jpeg


def planned(number):
    sample = SourceSample(str(number), (ImageRef(f"{number}.jpg"),), (SourceText("a thing"),))
    return PlannedSample(number, str(number), sample)


@pytest.fixture
def jpeg(tmp_path):
    return (make_input(tmp_path / "one", ["a thing"]) / "000.jpg").read_bytes()


def unit(number, samples=8):
    return Unit(number, samples, number * samples, "part", number)


def samples_of(of):
    """What the plan says of a unit."""
    return [planned(number) for number in range(of.first_ordinal, of.first_ordinal + of.samples)]


def made(source, threads, read=samples_of, prepare=lambda image: None):
    return Preparer(source, read, 100, threads, prepare)


def keys(items):
    return [item.planned.key for _, item in items]


def test_no_more_is_decoded_than_asked_for(jpeg):
    source = Slow(jpeg)
    _, items = made(source, 4).prepared(Order(unit(0, 50)), 6)
    for taken in range(1, 20):
        place, item = next(items)
        assert place == taken - 1
        assert item.planned.key == str(taken - 1)
        assert len(source.read) <= taken + 6 - 1
    items.close()
    source.allowed.clear()


def test_fewer_large_images_are_decoded_ahead(jpeg, monkeypatch):
    source = Slow(jpeg)
    one = decode_image(jpeg).pixels.nbytes
    monkeypatch.setattr(prepare, "MOST_BYTES_AHEAD", 3 * one)
    _, items = made(source, 2).prepared(Order(unit(0, 30)), 20)
    for taken, _ in enumerate(items, start=1):
        # two a thread while nothing is known, then as many as there may be
        assert len(source.read) <= taken + 4
    assert taken == 30


def test_probes_and_poison_decide_which_samples_of_a_unit_are_prepared(jpeg):
    preparer = made(Slow(jpeg), 1)
    for order, places in (
        (Order(unit(1), poison=frozenset({2, 5})), [0, 1, 3, 4, 6, 7]),
        (Order(unit(1), poison=frozenset({2}), probe=frozenset({3, 4})), [3, 4]),
    ):
        samples, items = preparer.prepared(order, 3)
        assert len(samples) == 8
        found = list(items)
        assert [place for place, _ in found] == places
        assert keys(found) == [str(8 + place) for place in places]


def test_the_next_unit_is_begun_when_this_one_leaves_threads_idle(jpeg):
    source, reads = Slow(jpeg), []

    def read(of):
        reads.append((of.id, len(source.read)))
        return samples_of(of)

    preparer = made(source, 1, read)
    _, items = preparer.prepared(Order(unit(0), ahead=unit(1)), 2)
    assert len(list(items)) == 8
    samples, items = preparer.prepared(Order(unit(1)), 3)
    assert len(samples) == 8
    assert keys(items) == [str(8 + number) for number in range(8)]
    assert [number for number, _ in reads] == [0, 1], "it was read twice"
    assert reads[1][1] >= 6, "before all of this unit was begun"
    preparer.prepared(Order(unit(1)), 3)
    assert [number for number, _ in reads] == [0, 1, 1], "it was taken twice"


@pytest.mark.parametrize("other", [Order(unit(2, 1)), Order(unit(1), poison=frozenset(range(1, 8)))])
def test_a_unit_that_was_begun_in_vain_is_forgotten(jpeg, other):
    source, reads = Slow(jpeg), threading.Semaphore(1)
    source.allowed = SimpleNamespace(wait=lambda seconds: reads.acquire(timeout=seconds))
    preparer = made(source, 1)
    _, items = preparer.prepared(Order(unit(0, 1), ahead=unit(1)), 4)
    next(items)
    items.close()
    _, items = preparer.prepared(other, 4)
    reads.release(20)
    assert len(list(items)) == 1
    assert len(source.read) <= 1 + 2 + 1, "what was begun in vain went on"


def test_a_unit_that_cannot_be_read_ahead_is_read_in_its_turn(jpeg):
    reads = []

    def read(of):
        reads.append(of.id)
        if reads == [0, 1]:
            raise StorageError("the store answers 503")
        return samples_of(of)

    preparer = made(Slow(jpeg), 1, read)
    list(preparer.prepared(Order(unit(0), ahead=unit(1)), 4)[1])
    assert len(list(preparer.prepared(Order(unit(1)), 4)[1])) == 8
    assert reads == [0, 1, 1]


def test_what_the_models_want_ahead_is_made_in_the_decoding_threads_and_weighed(jpeg):
    def prepare(image):
        assert image.shape == (40, 50, 3)
        return ModelInputs(segmenter=(np.zeros(7, np.uint8), np.zeros(5, np.uint8)), encoder=[threads.add(name())])

    def name():
        return threading.current_thread().name.partition("_")[0]

    threads = set()
    (_, first), (_, second) = made(Slow(jpeg), 2, prepare=prepare).prepared(Order(unit(0, 2)), 2)[1]
    assert threads == {"decode"}
    assert first.images[0].inputs.nbytes == second.images[0].inputs.nbytes == 12
    assert first.nbytes == 40 * 50 * 3 + 12


@pytest.mark.parametrize("error", [InputError("not this one"), MemoryError(), RuntimeError("can't allocate")])
def test_what_fails_ahead_is_left_to_the_models(jpeg, error):
    def prepare(image):
        raise error

    ((_, item),) = made(Slow(jpeg), 1, prepare=prepare).prepared(Order(unit(0, 1)), 1)[1]
    assert item.images[0].inputs is None
    assert item.nbytes == 40 * 50 * 3


@pytest.fixture(scope="module")
def tiny():
    settings = {"labels": {"box_threshold": 0.0}, "features": {"connector": "sti", "pool": 12}, "grid": "llava-1.6"}
    settings["models"] = "untrained-tiny"
    return AnnotationModels.load(AnnotatorConfig.parse(settings), "cpu")


def told(answers):
    """All that the models said, to compare."""
    found = []
    for answer in answers:
        arrays = (answer.instances.boxes, answer.instances.scores, answer.tokens["vqgan"].codes, answer.features)
        found.append((answer.instances.masks.rles(), *(array.tolist() for array in arrays)))
    return found


def test_models_say_the_same_of_what_was_prepared_ahead_and_look_at_nothing_else(tiny):
    one, other = np.random.default_rng(0).integers(0, 255, (2, 60, 90, 3), dtype=np.uint8)
    texts = [[Text("a cat")], [Text("a dog")]]
    plain = told(tiny.ask([one, other], texts))
    ready = [tiny.prepare(one), tiny.prepare(other)]
    assert told(tiny.ask([one, other], texts, ready)) == plain
    assert told(tiny.ask([one, other], texts, [ready[0], None])) == plain, "one that wasn't prepared"
    blank = np.zeros_like(one)
    assert told(tiny.ask([blank, blank], texts, ready)) == plain
    assert len(plain[0][0]) > 0, "nothing was found"


def test_what_waits_is_bytes_and_not_floats(tiny):
    ready = tiny.prepare(np.zeros((60, 90, 3), np.uint8))
    arrays = [*ready.segmenter, ready.tokenizers["vqgan"], *ready.encoder]
    assert {array.dtype for array in arrays} == {np.dtype(np.uint8)}
    assert ready.nbytes == sum(array.size for array in arrays) > 0


class Labels:
    """Models whose labels take until they are allowed."""

    def __init__(self):
        self.allowed = threading.Event()
        self.allowed.set()

    def label(self, answers, size, texts):
        assert self.allowed.wait(20)
        if isinstance(answers, Exception):
            raise answers
        return answers


@pytest.fixture
def finishing(monkeypatch):
    monkeypatch.setattr("patchmint.pipeline.worker.finish.made_image", lambda image, labelled: labelled)
    monkeypatch.setattr(
        "patchmint.pipeline.worker.finish.made_sample", lambda _, images, *rest, **more: images[0].number
    )
    with ThreadPoolExecutor(1) as pool:
        yield pool


def item(number, answers=None):
    image = PreparedImage(0, b"", SimpleNamespace(size=(1, 1)), [])
    return number, Prepared(planned(number), (image,)), [Made(number) if answers is None else answers]


@dataclass(frozen=True)
class Made:
    """What is made of an image, here."""

    number: int
    data: bytes = b""


def test_samples_are_written_in_order_while_the_next_batch_is_made(finishing):
    models, written = Labels(), []
    models.allowed.clear()
    with Finisher(models, lambda *finished: written.append(finished), finishing, {6, 8}, {7: 7}) as finisher:
        finisher.take([item(0), item(2), item(4)])
        assert written == []  # and it didn't wait
        models.allowed.set()
        finisher.take([item(3), item(5)])
        finisher.take([item(1)])
    assert written == [(place, place) for place in (0, 1, 2, 3, 4, 5, 7)]


def test_one_sample_without_memory_for_its_labels_is_rejected_alone(finishing):
    written = []
    with Finisher(Labels(), lambda _, entry: written.append(entry), finishing) as finisher:
        finisher.take([item(0), item(1, MemoryError("no room")), item(2)])
    assert [type(entry) for entry in written] == [int, Reject, int]
    assert written[1].fault.reason == "out-of-memory"
    assert "batch_size" in written[1].fault.message
    assert "alone" not in written[1].fault.message


def test_a_mistake_in_our_own_code_is_no_sample_s_fault(finishing):
    with pytest.raises(RuntimeError, match="a mistake"), Finisher(Labels(), print, finishing) as finisher:
        finisher.take([item(0, RuntimeError("a mistake"))])


def test_trouble_with_writing_is_told_at_the_next_batch(finishing):
    def write(place, entry):
        raise StorageError("the disk is full")

    def hand_over(finisher):
        finisher.take([item(0)])
        finisher.take([item(1)])
        pytest.fail("nobody was told")

    with pytest.raises(StorageError, match="full"), Finisher(Labels(), write, finishing) as finisher:
        hand_over(finisher)


def test_nothing_is_written_any_more_once_it_has_ended_with_an_error(finishing):
    models, written = Labels(), []
    models.allowed.clear()
    threading.Timer(0.2, models.allowed.set).start()

    def fail(finisher):
        finisher.take([item(0)])
        raise KeyError("something else")

    with (
        pytest.raises(KeyError),
        Finisher(models, lambda _, entry: written.append(entry), finishing) as finisher,
    ):
        fail(finisher)
    assert written == [0]


@pytest.fixture
def stand_in(monkeypatch):
    """The stand-in's modules in this process; torch's number of threads, which a worker sets, comes back."""
    monkeypatch.syspath_prepend(str(STAND_IN))
    threads = torch.get_num_threads()
    import stand_in_models

    yield stand_in_models
    torch.set_num_threads(threads)


def report_of(tmp_path, samples, name, samples_per_shard=16):
    source = tmp_path / f"in-{samples}"
    if not source.exists():
        make_input(source, [f"thing number {place}" for place in range(samples)], damaged=(3, 17))
    path, limits = tmp_path / f"{name}.yaml", {"max_reject_share": 0.5}
    return build_here(make_config(path, source, tmp_path / name, samples_per_shard, limits=limits), tmp_path / name)


def build_of(tmp_path, samples, name="out", samples_per_shard=16):
    report = report_of(tmp_path, samples, name, samples_per_shard)
    assert (report.planned, report.written) == (samples, samples - 2)
    return digests(tmp_path / name)


def test_batches_of_like_sizes_change_no_byte(stand_in, monkeypatch, tmp_path):
    """The stand-in's answers don't depend on the batch."""
    asked = []
    watched = _watched(stand_in.Boxes.segment, lambda images: asked.append({image.shape for image in images}))
    monkeypatch.setattr(stand_in.Boxes, "segment", watched)
    as_they_come = build_of(tmp_path, 40, "plain")
    mixed = [sizes for sizes in asked if len(sizes) > 1]
    assert len(mixed) > 10
    asked.clear()
    monkeypatch.setattr(stand_in.Boxes, "batch_key", lambda self, size: size[0] % 3, raising=False)
    assert build_of(tmp_path, 40, "alike") == as_they_come
    alike = [{height % 3 for height, *_ in sizes} for sizes in asked]
    assert sum(len(keys) == 1 for keys in alike) > len(alike) * 0.7


def _watched(segment, watch):
    def watched(self, images, texts):
        watch(images)
        return segment(self, images, texts)

    return watched


def test_a_build_has_images_prepared_ahead_and_rejects_the_one_that_can_t_be(stand_in, monkeypatch, tmp_path):
    """The same bytes as without, but for the one at fault; where memory was short, the models prepare it themselves."""
    threads, tokenize = [], stand_in.Levels.tokenize

    def prepare(self, image):
        threads.append(threading.current_thread().name.partition("_")[0])
        if len(threads) == 1:
            raise MemoryError
        if image.shape[0] == 48 and image[0, 0, 0] == marked:
            raise InputError("the stand-in can't prepare it")
        return image

    def tokenize_prepared(self, images, prepared):
        return tokenize(self, prepared)

    marked = -1
    plain = build_of(tmp_path, 40, "plain")
    monkeypatch.setattr(stand_in.Levels, "prepare", prepare, raising=False)
    monkeypatch.setattr(stand_in.Levels, "tokenize", tokenize_prepared)
    assert build_of(tmp_path, 40, "ahead") == plain
    assert threads.count("decode") == 38
    assert len(threads) == 39, "one was prepared once more"
    threads.append("decode")  # from here on there is memory
    marked = decode_image((tmp_path / "in-40" / "008.jpg").read_bytes()).pixels[0, 0, 0]
    report = report_of(tmp_path, 40, "faulty")
    assert report.written == 37
    assert report.rejects["not-annotatable"] == 1


def test_memory_does_not_grow_with_the_samples(stand_in, monkeypatch, tmp_path):
    pixels, most = weakref.WeakValueDictionary(), []
    numbers, real = iter(range(10**6)), prepare.decode_image

    def decode(*arguments, **options):
        image = real(*arguments, **options)
        pixels[next(numbers)] = image.pixels.base if image.pixels.base is not None else image.pixels
        return image

    def watch(images):
        gc.collect()
        most[-1] = max(most[-1], len(pixels))

    monkeypatch.setattr(prepare, "decode_image", decode)
    monkeypatch.setattr(stand_in.Boxes, "segment", _watched(stand_in.Boxes.segment, watch))
    monkeypatch.setattr(stand_in.Boxes, "batch_key", lambda self, size: size[0], raising=False)
    gc.collect()
    gc.freeze()  # what there is already needn't be looked through for each batch
    for samples in (24, 96):
        most.append(0)
        build_of(tmp_path, samples, f"out-{samples}", samples_per_shard=100)
    # batches of two: four of them to choose from, two decoded ahead, one asked about, two being finished
    assert all(8 <= count <= 2 * (4 + 2 + 1 + 2) for count in most), most


def test_the_worker_reads_its_next_unit_while_it_ends_this_one(stand_in, monkeypatch, tmp_path):
    read, real = [], work.read_unit

    def read_unit(storage, unit):
        read.append((unit.id, threading.current_thread().name.partition("_")[0]))
        return real(storage, unit)

    monkeypatch.setattr(work, "read_unit", read_unit)
    build_of(tmp_path, 40, samples_per_shard=8)
    assert read[0] == (0, "MainThread")
    assert read[1:] == [(number, "decode") for number in range(1, 5)]


def test_a_worker_bounds_the_kernels_that_it_keeps_and_the_run_says_the_size_of_its_batches(
    stand_in, monkeypatch, tmp_path
):
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "")  # so that it is as before afterwards
    monkeypatch.delenv("LRU_CACHE_CAPACITY")
    build_of(tmp_path, 20)
    assert os.environ["LRU_CACHE_CAPACITY"] == "1"
    (record,) = (tmp_path / "out" / "runs").glob("*.json")
    assert json.loads(record.read_text())["progress"]["batch_sizes"] == [2]


def test_each_worker_is_told_its_next_unit_and_gets_it():
    pool = Pool()
    supervise(pool, units(9), max_workers=1)
    following = [order.unit for order in pool.orders[1:]]
    assert [order.ahead for order in pool.orders] == [*following, None]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_unit_that_kills_while_it_is_read_ahead_condemns_nobody_else(workers):
    class Brittle(Pool):
        def submit(self, worker, order):
            if order.ahead is not None and order.ahead.id == 3:
                self.orders.append(order)
                self._end(worker, Died(worker, False, "killed by what it read ahead"))
                return
            super().submit(worker, order)

    pool = Brittle([(3, 5)])
    progress = supervise(pool, units(12), min_workers=workers, max_workers=workers)
    assert (progress.done, progress.written) == (12, 95)
    assert {order.unit.id: set(order.poison) for order in pool.orders if order.poison} == {3: {5}}
    dead = next(place for place, order in enumerate(pool.orders) if order.ahead is not None and order.ahead.id == 3)
    suspects = {3, pool.orders[dead].unit.id}
    assert not any(order.ahead is not None and order.ahead.id in suspects for order in pool.orders[dead + 1 :])
    # elsewhere nothing is hunted; what survived is tried again, whole, where a worker has died
    assert {order.probe for order in pool.orders if order.probe is not None and order.unit.id != 3} <= {
        frozenset(range(8))
    }


def test_what_a_busy_worker_was_to_get_is_done_by_an_idle_one():
    class Hanging(Pool):
        """Worker 0 never ends its first unit, until everything else is done."""

        def submit(self, worker, order):
            if worker == 0 and order.unit.id == 0:
                self.orders.append(order)
                return
            super().submit(worker, order)
            if sum(order.unit.id != 0 for order in self.orders) == 4:
                self.events.append(Done(0, UnitResult(0, 8, 8, {}, 1)))

    pool = Hanging()
    assert supervise(pool, units(5), min_workers=2, max_workers=2).done == 5
    assert pool.orders[0].ahead == units(5)[1]

"""Make region stores of the arrays that SCAN, VSE++, BFAN, VSRN and their followers share.

Reads FOLDER/{train,dev,test,testall}_ims.npy, *_caps.txt (a caption a line, five an image) and, where there is one,
*_ids.txt (an image id a line); writes DIR/SPLIT.h5 for each and DIR/captions.jsonl. Some copies of these data hold
every image five times in a row; the repetition is checked and undone. All-zero rows at the end of an image pad it to
the length of others and are left out. Arrays are read image by image, never whole. Whatever stopped it, the same
command goes on where it was; a split that is damaged does not keep the others from being made.

    python -m preprocess.scan_npy --input FOLDER --output DIR

The ids of SCAN's own data are Karpathy's `imgid`, under which nobody finds a photograph; his JSON translates them:

    python -m preprocess.scan_npy --input FOLDER --output DIR --karpathy dataset_coco.json
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path  # noqa: TC003 (tyro reads the annotations)
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from xmodal.data import Caption, save_captions
from xmodal.data.array_files import map_array
from xmodal.data.atomic import locked, refuse_inputs, written_whole
from xmodal.data.split import CAPTIONS
from xmodal.data.text import read_text
from xmodal.entry import run_program

from .image_ids import karpathy_images, karpathy_sentence
from .manifest import MANIFEST, note_written
from .parts import PartFiles, folder_of_parts, refuse_made, remove_parts
from .precomputed import RECORDS_A_PART, num_real, stamps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np

    from xmodal.data import RegionStoreWriter

SPLITS = ("train", "dev", "test", "testall")
CAPTIONS_PER_IMAGE = 5


@dataclass(frozen=True)
class Config:
    """Where to read and write."""

    input: Path
    """Folder with *_ims.npy, *_caps.txt and perhaps *_ids.txt."""
    output: Path
    """Folder for the stores and captions.jsonl."""
    splits: tuple[str, ...] = ()
    """Splits to convert; by default those of train, dev, test and testall that are there."""
    extractor: str = "bottom-up attention"
    """What made the features."""
    overwrite: bool = False
    """Replace stores that are there."""
    karpathy: Path | None = None
    """Karpathy's dataset_*.json: the ids in *_ids.txt are its `imgid`, and images are named as it names them, by COCO's
    id or the file name without ending."""


def main(config: Config) -> None:
    """Convert every split."""
    splits = config.splits or tuple(split for split in SPLITS if (config.input / f"{split}_ims.npy").exists())
    if not splits:
        raise FileNotFoundError(f"{config.input} holds none of {[f'{split}_ims.npy' for split in SPLITS]}")
    for output in (CAPTIONS, MANIFEST, *(f"{split}.h5" for split in splits)):
        refuse_inputs(config.output / output, [config.karpathy])
    names = None if config.karpathy is None else _read_karpathy(config.karpathy)
    progress = _Progress(config.output)
    captions: list[Caption] = []
    failed: dict[str, Exception] = {}
    for split in splits:
        try:
            captions += _convert_split(config, split, names, progress)
        except (ValueError, FileNotFoundError) as error:  # noqa: PERF203 (each split has its own fate)
            failed[split] = error
    if not captions:
        raise next(iter(failed.values()))
    save_captions(config.output / CAPTIONS, captions)
    note_written(config.output / CAPTIONS)
    print(f"{config.output / CAPTIONS}: {len(captions)} captions")
    if failed:
        told = "; ".join(f"{split}: {error}" for split, error in failed.items())
        raise ValueError(
            f"{len(failed)} of {len(splits)} splits were left out, the others are kept; the same command goes on with "
            f"what is missing. {told}"
        )
    progress.end()


class _Progress:
    """Which splits of an unfinished run are done."""

    def __init__(self, output: Path) -> None:
        self._output, self._path = output, output / ".scan_npy.json"
        try:
            self._made = dict(json.loads(self._path.read_bytes())) if self._path.exists() else {}
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{self._path} is damaged ({error}). Remove it, and finished splits, to go on.") from error

    def is_done(self, split: str, settings: Any) -> bool:
        """Whether the store of a split was made of all parts, which are gone."""
        store = self._output / f"{split}.h5"
        return self._made.get(split) == _json(settings) and store.exists() and not folder_of_parts(store).exists()

    def note(self, split: str, settings: Any) -> None:
        """All parts of a split are done: when they are gone, the store is."""
        self._made[split] = _json(settings)
        with written_whole(self._path) as temporary:
            temporary.write_text(json.dumps(self._made), "utf-8")

    def end(self) -> None:
        """The run is finished."""
        self._path.unlink(missing_ok=True)


def _json(settings: Any) -> Any:
    return json.loads(json.dumps(settings))


def _convert_split(
    config: Config, split: str, names: dict[str, KarpathyImage] | None, progress: _Progress
) -> list[Caption]:
    """Write one split's store; return its captions.

    Raises:
        FileNotFoundError: the array or the captions are not there.
        ValueError: a file is damaged, or the numbers of images, captions and ids do not go together.
    """
    path = config.input / f"{split}_ims.npy"
    output = config.output / f"{split}.h5"
    settings = [config.extractor, stamps([path, *(config.input / f"{split}_{kind}.txt" for kind in ("caps", "ids"))])]
    settings += [stamps([config.karpathy] if config.karpathy else [])]
    is_done = progress.is_done(split, settings)
    if not is_done:
        refuse_made(output, overwrite=config.overwrite)
    features = _open_array(path)
    sentences = _read_lines(config.input / f"{split}_caps.txt")
    step = _rows_per_image(features, len(sentences), path)
    num_images = len(features) // step
    image_ids = _image_ids(config.input / f"{split}_ids.txt", split, num_images, step)
    captions_per_image = len(sentences) // num_images
    if names is not None:
        image_ids = _translated(image_ids, names, sentences[::captions_per_image], config.input / f"{split}_ids.txt")
    if not is_done:
        with locked(folder_of_parts(output)):
            parts = PartFiles(output, settings)
            rows = _Rows(path, features, step, image_ids)
            padding = _write_parts(parts, rows, config, partial(progress.note, split, settings))
        print(f"{output}: {num_images} images{padding.told()}")
    return [
        Caption(image_ids[number // captions_per_image], f"{split}_{number}", sentence, split)
        for number, sentence in enumerate(sentences)
    ]


class _Rows(NamedTuple):
    """The array of a split: where it is, how many rows are the same image, and what the images are called."""

    path: Path
    features: np.ndarray
    step: int
    image_ids: list[str]

    def image(self, number: int) -> np.ndarray:
        """All rows of an image, padding included.

        Raises:
            ValueError: the rows of an image differ.
        """
        first, end = number * self.step, (number + 1) * self.step
        rows = self.features[first:end]
        if len({row.tobytes() for row in rows}) > 1:
            raise ValueError(
                f"{self.path}: the first images come {self.step} times in a row, but rows {first} to {end - 1} differ"
            )
        return rows[0]


class _Padding(NamedTuple):
    """All-zero rows that were left out, and how many images had some."""

    rows: int = 0
    images: int = 0

    def told(self) -> str:
        """What the user is told about it."""
        return f"; {self.rows} all-zero rows that pad {self.images} images were left out" if self.images else ""


def _write_parts(parts: PartFiles, rows: _Rows, config: Config, all_done: Callable[[], None]) -> _Padding:
    """Write what is missing of a split, and make its store.

    Raises:
        ValueError: the rows of an image differ, or all are zeros.
    """
    options = {
        "dim": rows.features.shape[2],
        "max_regions": _longest(rows.features),
        "dtype": rows.features.dtype.name,
        "extractor": config.extractor,
    }
    padding = _Padding()
    numbers = range(len(rows.image_ids))
    count = -(-len(numbers) // RECORDS_A_PART)
    for number in tqdm(range(count), desc=parts.output.stem, unit="part", delay=2):
        note = parts.note(number)
        if note is None:
            images = numbers[number * RECORDS_A_PART : (number + 1) * RECORDS_A_PART]
            try:
                made = _write_part(parts.writer(number, options), rows, images)
            except ValueError:  # of the array, which must change before this goes on
                remove_parts(parts.output)
                raise
            note = made._asdict()
            parts.finish(number, note)
        padding = _Padding(padding.rows + note["rows"], padding.images + note["images"])
    all_done()
    parts.put_together(count, options, "auto", {}, overwrite=config.overwrite)
    return padding


def _write_part(writer: RegionStoreWriter, rows: _Rows, images: Iterable[int]) -> _Padding:
    padding, padded = 0, 0
    with writer:
        for number in images:
            row, image_id = rows.image(number), rows.image_ids[number]
            count = num_real(row)
            if not count:
                raise ValueError(
                    f"{rows.path}, row {number * rows.step}: all regions of image {image_id!r} are zeros; leave it out"
                )
            try:
                writer.write(image_id, row[:count])
            except ValueError as error:
                raise ValueError(f"{rows.path}, row {number * rows.step}: {error}") from error
            padding += len(row) - count
            padded += count < len(row)
    return _Padding(padding, padded)


def _rows_per_image(features: np.ndarray, num_captions: int, path: Path) -> int:
    """How many rows of the array are the same image: five, or one."""
    rows = len(features)
    if num_captions == rows * CAPTIONS_PER_IMAGE:
        return 1
    if num_captions != rows:
        raise ValueError(
            f"{path} has {rows} rows for {num_captions} captions; wanted {rows} captions, one a row, or "
            f"{rows * CAPTIONS_PER_IMAGE}, {CAPTIONS_PER_IMAGE} a row. Is it, or "
            f"{path.name.replace('_ims.npy', '_caps.txt')}, cut off or of another split?"
        )
    first = features[:CAPTIONS_PER_IMAGE]
    repeated = rows % CAPTIONS_PER_IMAGE == 0 and bool((first == first[0]).all())
    return CAPTIONS_PER_IMAGE if repeated else 1


def _longest(features: np.ndarray) -> int:
    """The most regions that any image has, the zero rows at its end not counted.

    In an array without padding the first image answers it.
    """
    return next((r + 1 for r in reversed(range(features.shape[1])) if any(image[r].any() for image in features)), 1)


class KarpathyImage(NamedTuple):
    """What a data set calls an image, and the letters of its captions."""

    image_id: str
    captions: set[str]


def _read_karpathy(path: Path) -> dict[str, KarpathyImage]:
    """The images of Karpathy's JSON by `imgid`.

    Raises:
        ValueError: the file is something else.
    """
    images = {}
    try:
        for image_id, _, image in karpathy_images(path):
            sentences = map(karpathy_sentence, image["sentences"])
            images[str(image["imgid"])] = KarpathyImage(image_id, set(map(_letters, sentences)))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not Karpathy's JSON (images with imgid, filename, sentences): {error!r}"
        ) from error
    return images


def _translated(image_ids: list[str], images: dict[str, KarpathyImage], sentences: list[str], path: Path) -> list[str]:
    """The data set's names of images that go by `imgid`; the first caption of each tells whether they do.

    Raises:
        FileNotFoundError: there is no file of ids.
        ValueError: an id is none of the JSON's, or the captions of its image are others.
    """
    if not path.exists():
        raise FileNotFoundError(f"--karpathy translates the ids in {path}, which is not there")
    absent = [image_id for image_id in image_ids if image_id not in images]
    if absent:
        raise ValueError(
            f"{path}: {len(absent)} of {len(image_ids)} ids are no imgid of the JSON, {absent[0]!r} for one; is it "
            "of the same data set?"
        )
    found = [images[image_id] for image_id in image_ids]
    same = sum(_letters(sentence) in image.captions for sentence, image in zip(sentences, found, strict=True))
    if 2 * same < len(found):
        raise ValueError(
            f"{path}: only {same} of {len(found)} images have their first caption in the JSON, so its imgid are other "
            "images; is it of the same data set?"
        )
    return [image.image_id for image in found]


def _letters(text: str) -> str:
    """A caption without what tokenizers change."""
    return "".join(filter(str.isalnum, text.lower()))


def _image_ids(path: Path, split: str, num_images: int, step: int) -> list[str]:
    if not path.exists():
        return [f"{split}_{image}" for image in range(num_images)]
    image_ids = _read_lines(path)
    if len(image_ids) == num_images * CAPTIONS_PER_IMAGE:  # an id a caption
        image_ids = image_ids[::CAPTIONS_PER_IMAGE]
    if len(image_ids) != num_images:
        raise ValueError(
            f"{path} has {len(image_ids)} ids for {num_images} images (each {step} row(s) of the array); "
            f"wanted {num_images}"
        )
    repeated = [image_id for image_id, count in Counter(image_ids).items() if count > 1]
    if repeated:
        places = [str(number) for number, image_id in enumerate(image_ids, start=1) if image_id == repeated[0]]
        raise ValueError(
            f"{path} calls images {' and '.join(places)} (of {num_images}) {repeated[0]!r}; each needs its own id"
        )
    return image_ids


def _open_array(path: Path) -> np.ndarray:
    if not path.exists():
        raise FileNotFoundError(f"no array at {path}")
    try:
        array = map_array(path)
    except Exception as error:  # a damaged header can fail in any way
        raise ValueError(f"{path} is not a NumPy array file, or was cut off ({error}). Copy it again.") from error
    if array.ndim != 3 or array.dtype.name not in ("float16", "float32"):
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}; wanted float32 or float16, (image, region, dim)"
        )
    return array


def _read_lines(path: Path) -> list[str]:
    lines = [line.strip() for line in read_text(path).rstrip().split("\n")]
    if "" in lines:
        raise ValueError(f"{path}, line {lines.index('') + 1} is empty; every line counts, so it cannot be left out")
    return lines


if __name__ == "__main__":
    run_program(main)

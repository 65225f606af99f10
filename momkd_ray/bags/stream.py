"""From the bag store to the steps of one worker: what each epoch draws, who takes which bag, and reading ahead."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from momkd_ray.bags.readers import Bag
from momkd_ray.bags.store import BagStore, from_row, row_at
from momkd_ray.errors import InputError


class BagSource(Protocol):
    """Anything that hands out bags by slide."""

    def read(self, slide_id: str) -> Bag:
        """The bag of a slide."""
        ...


@dataclass(frozen=True)
class Draw:
    """One bag of a step: the slide's place in the training set, and the seed of its dropout."""

    slide: int
    seed: int


def draw_seed(*parts: int | str) -> int:
    """A seed from what identifies a draw; the same on every machine and for every number of workers."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "little")


def plan_epoch(
    slide_ids: Sequence[str],
    labels_N: np.ndarray,
    *,
    seed: int,
    epoch: int,
    bags_per_step: int,
    balanced: bool,
) -> list[list[Draw]]:
    """The steps of an epoch: as many draws as there are slides, cut into steps (the last may be shorter).

    Balanced: each draw takes a class evenly, then one of its slides, with replacement. Otherwise every slide
    once, shuffled. Depends on (seed, epoch) and the slides alone.
    """
    rng = np.random.default_rng(draw_seed("epoch", seed, epoch))
    n = len(slide_ids)
    if balanced:
        by_class = [np.flatnonzero(labels_N == y) for y in np.unique(labels_N)]
        chosen = [rng.choice(by_class[c]) for c in rng.integers(0, len(by_class), n)]
    else:
        chosen = list(rng.permutation(n))
    seen: dict[int, int] = {}
    draws = []
    for slide in map(int, chosen):
        seen[slide] = seen.get(slide, 0) + 1
        draws.append(Draw(slide, draw_seed("dropout", seed, epoch, slide_ids[slide], seen[slide])))
    return [draws[i : i + bags_per_step] for i in range(0, n, bags_per_step)]


def divide(patches: Sequence[int], workers: int) -> list[list[int]]:
    """Give each worker its share of some bags, even by patches: the largest first, to whoever has least.

    Returns each worker's places in `patches`, ascending; every place is in exactly one share.
    """
    shares: list[list[int]] = [[] for _ in range(workers)]
    load = [(0, 0, rank) for rank in range(workers)]
    for place in sorted(range(len(patches)), key=lambda i: (-patches[i], i)):
        filled, bags, rank = min(load)
        shares[rank].append(place)
        load[rank] = (filled + patches[place], bags + 1, rank)
    return [sorted(share) for share in shares]


def passes(patches: Sequence[int], limit: int) -> list[list[int]]:
    """Group a step's bags, in order, into passes of at most `limit` patches (a larger bag goes alone)."""
    groups: list[list[int]] = []
    filled = 0
    for place, size in enumerate(patches):
        if not groups or filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(place)
        filled += size
    return groups


def read_ahead(source: BagSource, slide_ids: Iterable[str], depth: int = 4) -> Iterator[Bag]:
    """Bags in the given order, up to `depth` of them read in the background while the caller computes."""
    pending: deque[Future[Bag]] = deque()
    waiting = iter(slide_ids)
    pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
    try:
        while True:
            while len(pending) < depth and (slide_id := next(waiting, None)) is not None:
                pending.append(pool.submit(source.read, slide_id))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class SharedBags:
    """Bags that Ray Data has read into the object store once, where every worker of every fold finds them."""

    def __init__(self, blocks: Sequence[Any], places: Mapping[str, tuple[int, int]]) -> None:
        self._blocks, self._places = list(blocks), dict(places)
        self._opened: dict[int, Any] = {}

    def read(self, slide_id: str) -> Bag:
        """The bag of a slide, without a copy where the block lies on this node."""
        if slide_id not in self._places:
            raise InputError(f"slide {slide_id} is not among the shared bags; run ingest again")
        block, row = self._places[slide_id]
        return from_row(row_at(self._block(block), row))

    def _block(self, block: int) -> Any:
        if block not in self._opened:
            import ray

            # opened once: a block of many rows takes far longer to open than a bag to read
            self._opened[block] = ray.get(self._blocks[block])
        return self._opened[block]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": {}}


def stored_bytes(store: BagStore, slide_ids: Sequence[str]) -> int:
    """About how many bytes the bags of these slides take in memory."""
    patches = int(store.slides.loc[list(slide_ids), "n_patches"].sum())
    per_patch = store.width * np.dtype(store.dtype).itemsize + 8 + 4 * (store.neighbors + 1)
    return patches * per_patch


def share_bags(store: BagStore, slide_ids: Sequence[str], memory_share: float) -> BagSource:
    """Let Ray Data read the bags into the object store if they fit `memory_share` of every node's.

    Returns the shared bags, or the store itself, which every worker then reads by row group.
    """
    import ray

    # a worker keeps every block it has read, so the bags must fit each node, not all of them together
    nodes = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    if stored_bytes(store, slide_ids) > memory_share * min(nodes):
        return store
    wanted = {str(s): str(sha) for s, sha in store.slides["sha256"].loc[list(slide_ids)].items()}
    paths, file_system = store.part_paths(sorted(set(store.slides.loc[list(slide_ids), "part"])))
    dataset = ray.data.read_parquet(paths, filesystem=file_system).map_batches(
        _wanted_in_one_piece, fn_kwargs={"wanted": wanted}, batch_format="pyarrow", batch_size=None
    )
    blocks = dataset.materialize().to_arrow_refs()
    ids_of = ray.remote(num_cpus=0)(_slide_ids)
    found = ray.get([ids_of.remote(block) for block in blocks])
    places = {s: (b, row) for b, ids in enumerate(found) for row, s in enumerate(ids)}
    if missing := sorted(set(wanted) - set(places)):
        raise InputError(f"the bag store {store.uri} has lost slide {missing[0]}; run ingest again")
    return SharedBags(blocks, places)


def _wanted_in_one_piece(block: Any, wanted: Mapping[str, str]) -> Any:
    """The wanted rows of a block, contiguous: as read, each row group is a chunk of its own, slow to open and search.

    A part may still hold the old bag of a slide that was ingested again into another: its hash tells.
    """
    keys = zip(block.column("slide_id").to_pylist(), block.column("sha256").to_pylist(), strict=True)
    rows = [row for row, (slide_id, sha) in enumerate(keys) if wanted.get(slide_id) == sha]
    return block.take(rows).combine_chunks()


def _slide_ids(block: Any) -> list[str]:
    ids: list[str] = block.column("slide_id").to_pylist()
    return ids

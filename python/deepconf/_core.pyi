from collections.abc import Iterable, Iterator, Sequence
from typing import (
    Any,
    Final,
    Literal,
    Protocol,
    SupportsFloat,
    SupportsIndex,
    TypeAlias,
    TypedDict,
    final,
    type_check_only,
)

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Self, Unpack, disjoint_base

from deepconf._frames import Ballot, QuestionVote
from deepconf.errors import DeepConfError

__all__ = [
    "CONFIDENCE_LIMIT",
    "Action",
    "BatchScorer",
    "Controller",
    "Outcome",
    "Policy",
    "ReplayPool",
    "Scores",
    "TraceScorer",
    "TraceScores",
    "Vote",
    "Votes",
    "__version__",
    "dict_confidences",
    "flat_confidences",
    "logits_confidence",
    "openai_confidences",
    "row_confidences",
    "score",
    "token_confidence",
    "token_entropy",
    "vote",
    "vote_many",
]

CONFIDENCE_LIMIT: Final[float]
__version__: Final[str]

@type_check_only
class _ArrowArray(Protocol):
    def __arrow_c_array__(self, requested_schema: Any = None) -> tuple[Any, Any]: ...

@type_check_only
class _ArrowStream(Protocol):
    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any: ...

_Arrow: TypeAlias = _ArrowArray | _ArrowStream
_Traces: TypeAlias = (
    Iterable[ArrayLike] | tuple[ArrayLike, ArrayLike] | NDArray[np.floating[Any]] | _Arrow
)
_Column: TypeAlias = Iterable[Any] | _Arrow
_Math: TypeAlias = Literal["auto"] | bool

_Mode: TypeAlias = Literal["online", "offline"]
_Entries: TypeAlias = Literal["topk", "returned"]
_Measure: TypeAlias = Literal["mean", "lowest_group", "bottom_group", "tail"]
_Weight: TypeAlias = Literal["majority", "mean", "lowest_group", "bottom_group", "tail"]
_StopWhen: TypeAlias = Literal["consensus", "certain", "budget"]
_CalibrateOn: TypeAlias = Literal["finished", "all"]
_PercentileOver: TypeAlias = Literal["answered", "all"]
_Finish: TypeAlias = Literal["finished", "length", "aborted"]
_Reason: TypeAlias = Literal["consensus", "certain", "budget", "cancelled", "engine_died"]
_Status: TypeAlias = Literal[
    "launching",
    "running",
    "stopping",
    "aborting",
    "finished",
    "length",
    "stopped",
    "aborted",
    "failed",
]

def score(
    traces: _Traces,
    *,
    window: SupportsIndex | None = None,
    tail: SupportsIndex | None = None,
    bottom: SupportsFloat = 0.10,
    decimals: SupportsIndex | None = None,
    threads: SupportsIndex | None = None,
) -> Scores: ...
def token_confidence(
    logprobs: ArrayLike,
    *,
    logprob_floor: SupportsFloat | None = None,
    threads: SupportsIndex | None = None,
) -> NDArray[np.float32]: ...
def token_entropy(
    logprobs: ArrayLike,
    *,
    logprob_floor: SupportsFloat | None = None,
    threads: SupportsIndex | None = None,
) -> NDArray[np.float32]: ...
def logits_confidence(
    logits: ArrayLike,
    k: SupportsIndex = 20,
    *,
    logprob_floor: SupportsFloat | None = None,
    threads: SupportsIndex | None = None,
) -> NDArray[np.float32]: ...
def vote(
    answers: _Column,
    weights: ArrayLike | None = None,
    keep: SupportsFloat = 1.0,
    scores: ArrayLike | None = None,
    *,
    min_ballots: SupportsIndex = 1,
    math: _Math | None = None,
) -> Vote: ...
def vote_many(
    questions: _Column,
    answers: _Column,
    weights: ArrayLike | None = None,
    keep: SupportsFloat = 1.0,
    scores: ArrayLike | None = None,
    *,
    min_ballots: SupportsIndex = 1,
    math: _Math | None = None,
    threads: SupportsIndex | None = None,
) -> Votes: ...
def flat_confidences(
    logprobs: list[float],
    ends: Sequence[SupportsIndex],
    ranks: list[int | None],
    k: SupportsIndex | None = None,
    returned: bool = False,
    floor: SupportsFloat | None = None,
) -> NDArray[np.float32]: ...
def row_confidences(
    logprobs: NDArray[np.float32],
    k: SupportsIndex,
    ranks: ArrayLike | None = None,
    floor: SupportsFloat | None = None,
) -> NDArray[np.float32]: ...
def dict_confidences(
    rows: list[Any],
    k: SupportsIndex | None = None,
    returned: bool = False,
    floor: SupportsFloat | None = None,
) -> NDArray[np.float32]: ...
def openai_confidences(
    logprobs: Any,
    k: SupportsIndex | None = None,
    returned: bool = False,
    floor: SupportsFloat | None = None,
) -> NDArray[np.float32]: ...

@final
class Scores:
    def __new__(
        cls,
        mean: NDArray[np.float64],
        lowest_group: NDArray[np.float64],
        bottom_group: NDArray[np.float64],
        tail: NDArray[np.float64],
        num_tokens: NDArray[np.int64],
        short: NDArray[np.bool_],
    ) -> Self: ...
    def __getnewargs__(self) -> tuple[Any, ...]: ...
    @property
    def mean(self) -> NDArray[np.float64]: ...
    @property
    def lowest_group(self) -> NDArray[np.float64]: ...
    @property
    def bottom_group(self) -> NDArray[np.float64]: ...
    @property
    def tail(self) -> NDArray[np.float64]: ...
    @property
    def num_tokens(self) -> NDArray[np.int64]: ...
    @property
    def short(self) -> NDArray[np.bool_]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, key: SupportsIndex, /) -> TraceScores: ...
    def __iter__(self) -> Iterator[TraceScores]: ...
    def to_arrow(self) -> Any: ...
    def to_pandas(self) -> Any: ...
    def _repr_html_(self) -> str: ...

@final
class TraceScores:
    def __new__(
        cls,
        mean: SupportsFloat,
        lowest_group: SupportsFloat,
        bottom_group: SupportsFloat,
        tail: SupportsFloat,
        num_tokens: SupportsIndex,
        short: bool,
    ) -> Self: ...
    def __getnewargs__(self) -> tuple[Any, ...]: ...
    @property
    def mean(self) -> float: ...
    @property
    def lowest_group(self) -> float: ...
    @property
    def bottom_group(self) -> float: ...
    @property
    def tail(self) -> float: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def short(self) -> bool: ...

@final
class TraceScorer:
    def __new__(
        cls,
        window: SupportsIndex | None = None,
        tail: SupportsIndex | None = None,
        bottom: SupportsFloat | None = 0.10,
        threshold: SupportsFloat | None = None,
    ) -> Self: ...
    def push(self, confidence: SupportsFloat) -> bool: ...
    def extend(self, confidences: ArrayLike) -> int | None: ...
    def reset(self) -> None: ...
    def scores(self) -> TraceScores: ...
    @property
    def group(self) -> float: ...
    @property
    def lowest_group(self) -> float: ...
    @property
    def mean(self) -> float: ...
    @property
    def tail(self) -> float: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def threshold(self) -> float | None: ...
    @threshold.setter
    def threshold(self, value: SupportsFloat | None) -> None: ...

@final
class BatchScorer:
    def __new__(
        cls,
        slots: SupportsIndex,
        *,
        window: SupportsIndex | None = None,
        tail: SupportsIndex | None = None,
        threshold: SupportsFloat | None = None,
    ) -> Self: ...
    def step(self, slot_ids: ArrayLike, confidences: ArrayLike) -> NDArray[np.bool_]: ...
    def reset(self, slot_ids: ArrayLike) -> None: ...
    def set_threshold(
        self, threshold: SupportsFloat | None, slot_ids: ArrayLike | None = None
    ) -> None: ...
    @property
    def group(self) -> NDArray[np.float64]: ...
    @property
    def lowest_group(self) -> NDArray[np.float64]: ...
    @property
    def num_tokens(self) -> NDArray[np.int64]: ...
    def __len__(self) -> int: ...

@final
class Vote:
    def __new__(
        cls,
        answer: Any,
        ballots: dict[Any, float],
        voters: dict[Any, int],
        share: SupportsFloat,
        num_voters: SupportsIndex,
        threshold: SupportsFloat | None,
        fallback: bool,
    ) -> Self: ...
    def __getnewargs__(self) -> tuple[Any, ...]: ...
    @property
    def answer(self) -> Any: ...
    @property
    def ballots(self) -> dict[Any, float]: ...
    @property
    def voters(self) -> dict[Any, int]: ...
    @property
    def share(self) -> float: ...
    @property
    def num_voters(self) -> int: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def fallback(self) -> bool: ...
    def __iter__(self) -> Iterator[Ballot]: ...
    def to_arrow(self) -> Any: ...
    def to_pandas(self) -> Any: ...
    def _repr_html_(self) -> str: ...

@final
class Votes:
    def __new__(
        cls,
        questions: list[Any],
        answers: list[Any],
        share: NDArray[np.float64],
        num_voters: NDArray[np.int64],
        fallback: NDArray[np.bool_],
    ) -> Self: ...
    def __getnewargs__(self) -> tuple[Any, ...]: ...
    @property
    def questions(self) -> list[Any]: ...
    @property
    def answers(self) -> list[Any]: ...
    @property
    def share(self) -> NDArray[np.float64]: ...
    @property
    def num_voters(self) -> NDArray[np.int64]: ...
    @property
    def fallback(self) -> NDArray[np.bool_]: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[QuestionVote]: ...
    def to_arrow(self) -> Any: ...
    def to_pandas(self) -> Any: ...
    def _repr_html_(self) -> str: ...

@type_check_only
class _Settings(TypedDict, total=False):
    mode: _Mode
    budget: SupportsIndex
    warmup: SupportsIndex
    concurrency: SupportsIndex | None
    seed: SupportsIndex | None
    top_logprobs: SupportsIndex
    entries: _Entries
    logprob_floor: SupportsFloat | None
    decimals: SupportsIndex | None
    window: SupportsIndex
    tail: SupportsIndex
    bottom: SupportsFloat
    keep: SupportsFloat
    measure: _Measure
    weight: _Weight
    max_weight: SupportsFloat | None
    stop: _StopWhen
    consensus: SupportsFloat
    min_ballots: SupportsIndex
    calibrate_on: _CalibrateOn
    percentile_over: _PercentileOver
    stopped_vote: bool

@final
class Policy:
    def __new__(cls, **settings: Unpack[_Settings]) -> Self: ...
    @staticmethod
    def preset(name: str, /, **settings: Unpack[_Settings]) -> Policy: ...
    @staticmethod
    def low(**settings: Unpack[_Settings]) -> Policy: ...
    @staticmethod
    def high(**settings: Unpack[_Settings]) -> Policy: ...
    @staticmethod
    def offline(**settings: Unpack[_Settings]) -> Policy: ...
    @staticmethod
    def presets() -> list[str]: ...
    def replace(self, **settings: Unpack[_Settings]) -> Policy: ...
    def as_dict(self) -> dict[str, Any]: ...
    @property
    def mode(self) -> _Mode: ...
    @property
    def budget(self) -> int: ...
    @property
    def warmup(self) -> int: ...
    @property
    def concurrency(self) -> int | None: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def top_logprobs(self) -> int: ...
    @property
    def entries(self) -> _Entries: ...
    @property
    def logprob_floor(self) -> float | None: ...
    @property
    def decimals(self) -> int | None: ...
    @property
    def window(self) -> int: ...
    @property
    def tail(self) -> int: ...
    @property
    def bottom(self) -> float: ...
    @property
    def keep(self) -> float: ...
    @property
    def measure(self) -> _Measure: ...
    @property
    def weight(self) -> _Weight: ...
    @property
    def max_weight(self) -> float | None: ...
    @property
    def stop(self) -> _StopWhen: ...
    @property
    def consensus(self) -> float: ...
    @property
    def min_ballots(self) -> int: ...
    @property
    def calibrate_on(self) -> _CalibrateOn: ...
    @property
    def percentile_over(self) -> _PercentileOver: ...
    @property
    def stopped_vote(self) -> bool: ...
    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]: ...

@disjoint_base
class Action:
    @final
    class Launch(Action):
        __match_args__ = ("traces",)
        def __new__(cls, traces: Sequence[int]) -> Self: ...
        @property
        def traces(self) -> list[int]: ...

    @final
    class Stop(Action):
        __match_args__ = ("trace", "token")
        def __new__(cls, trace: int, token: int) -> Self: ...
        @property
        def trace(self) -> int: ...
        @property
        def token(self) -> int: ...

    @final
    class Abort(Action):
        __match_args__ = ("traces",)
        def __new__(cls, traces: Sequence[int]) -> Self: ...
        @property
        def traces(self) -> list[int]: ...

    @final
    class Answer(Action):
        __match_args__ = ("outcome",)
        def __new__(cls, outcome: Outcome) -> Self: ...
        @property
        def outcome(self) -> Outcome: ...

@final
class Outcome:
    @property
    def answer(self) -> str | None: ...
    @property
    def vote(self) -> Vote: ...
    @property
    def voters(self) -> list[int]: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def reason(self) -> _Reason: ...
    @property
    def unarmed(self) -> str | None: ...

@final
class Controller:
    def __new__(cls, policy: Policy) -> Self: ...
    def start(self) -> list[Action]: ...
    def launched(self, trace: SupportsIndex) -> None: ...
    def relaunched(self, trace: SupportsIndex) -> None: ...
    def tokens(self, trace: SupportsIndex, confidences: ArrayLike) -> Action.Stop | None: ...
    def step(
        self, traces: ArrayLike, confidences: ArrayLike
    ) -> tuple[list[Action.Stop], dict[int, DeepConfError]]: ...
    def scored(
        self,
        trace: SupportsIndex,
        scores: TraceScores,
        *,
        num_tokens: SupportsIndex | None = None,
        stop_token: SupportsIndex | None = None,
    ) -> Action.Stop | None: ...
    def finished(
        self, trace: SupportsIndex, finish: _Finish, answer: str | None = None
    ) -> list[Action]: ...
    def ended(self, trace: SupportsIndex, finish: _Finish) -> list[Action]: ...
    def answered(self, trace: SupportsIndex, answer: str | None) -> list[Action]: ...
    def failed(self, trace: SupportsIndex) -> list[Action]: ...
    def cancel(self) -> list[Action]: ...
    def engine_died(self) -> list[Action]: ...
    def status(self, trace: SupportsIndex) -> _Status | None: ...
    def scores(self, trace: SupportsIndex) -> TraceScores | None: ...
    @property
    def outcome(self) -> Outcome | None: ...
    @property
    def policy(self) -> Policy: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def num_tokens(self) -> int: ...

@final
class ReplayPool:
    REASONS: list[str]
    def __new__(cls, policies: Iterable[Policy]) -> Self: ...
    def add(
        self,
        questions: ArrayLike,
        traces: ArrayLike,
        answers: ArrayLike,
        at_limit: ArrayLike,
        confidences: _Arrow,
    ) -> None: ...
    def close(self) -> None: ...
    @property
    def num_lows(self) -> int: ...
    def run(
        self,
        question: SupportsIndex,
        policies: Iterable[Policy],
        draws: NDArray[np.uint32],
        lag: SupportsIndex = 0,
        threads: SupportsIndex | None = None,
    ) -> dict[str, NDArray[Any]]: ...

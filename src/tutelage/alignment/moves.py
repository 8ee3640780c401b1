"""The move of any objective of the package at a node: minus its gradient in the logits.

`ops.alignment` knows the closed forms of three divergences; here the objective itself is
asked, so that what is measured is what would be trained.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from tutelage import config as c
from tutelage.errors import UsageError
from tutelage.models.served.teacher import ServedJudgement, ServedTeacher, require_servable
from tutelage.objective import brake_gradient, expected_gradient, logit_gradient, target_logprobs
from tutelage.ops.alignment.moves import LOG_FLOOR

_NO_MASS = -1e4
"""Log-probability of a token the student never takes: finite, and its exponential is 0."""


def node_moves(
    objective: c.Objective,
    student: Float[Tensor, "N V"],
    teacher: Float[Tensor, "N V"],
    references: Mapping[str, Tensor] | None = None,
    downstream: Float[Tensor, "N V"] | None = None,
) -> Float[Tensor, "N V"]:
    """The expected move of an objective at N states, over the draw of the sampled token.

    Token weights and the schedule of a reward scale a state's move; multiply rows by them. The
    verified reward's own term points along the ideal gradient whoever teaches, so it is left out.

    Args:
        objective: what would be trained.
        student: log p.
        teacher: log q.
        references: log-probabilities of the models that `objective.reference_models` names.
        downstream: for `return_to_go`, the discounted losses expected after each token, the first
            of them already discounted; C of the sequence KL at discount 1.

    Raises:
        ValueError: `return_to_go` without `downstream`.
    """
    if objective.return_to_go is not None and downstream is None:
        raise ValueError(
            "objective.return_to_go credits a token with the losses still to come, which a single "
            "state does not know; give `downstream`, their expectation after each token, or set "
            "return_to_go: null"
        )
    given = references or {}
    student = student.detach()
    target = target_logprobs(objective.target, student, teacher, given)
    gradient = expected_gradient(objective, student, target)
    if objective.brake is not None:
        strength = student.new_full((len(student),), objective.brake.coefficient)
        gradient = gradient + brake_gradient(student, given["brake"], strength)[1]
    if objective.return_to_go is not None and downstream is not None:
        p = student.exp()
        gradient = gradient + p * (downstream - (p * downstream).sum(-1, keepdim=True))
    return -gradient


@dataclass(frozen=True)
class ObjectiveMove:
    """The move of an objective: a function (p, q) -> D, as `ops.alignment.moves.restrict` takes."""

    objective: c.Objective
    """What would be trained."""

    def __call__(self, p: ndarray, q: ndarray) -> ndarray:
        """D of complete distributions.

        Log q is floored at LOG_FLOOR. Tokens with p = q = 0 are padding: rows are grouped by the
        tokens they really have, since an objective such as the uniform one of the reference code
        counts tokens. `k` shrinks to them.
        """
        present = (p > 0) | (q > 0)
        widths = present.sum(-1)
        order = np.argsort(~present, axis=-1, kind="stable")
        result = np.zeros_like(p)
        for width in np.unique(widths[widths > 0]):
            rows = np.flatnonzero(widths == width)
            columns = order[rows, :width]
            some_p, some_q = (np.take_along_axis(x[rows], columns, -1) for x in (p, q))
            small = _fitted(self.objective, int(width))
            part = node_moves(small, _log(some_p, _NO_MASS), _log(some_q, LOG_FLOOR))
            result[rows[:, None], columns] = part.numpy()
        return result

    @property
    def support(self) -> int:
        """Size of the support it compares; 0 for none."""
        return self.objective.k if isinstance(self.objective, c.TopK) else 0

    def on_list(
        self,
        student: Float[Tensor, "n V"],
        known: Float[Tensor, "n V"],
        judgement: ServedJudgement,
        rows: slice,
    ) -> ndarray:
        """D [n, V] from what a server gave, where `require_listable` lets it; nothing is filled in.

        Args:
            student: log p.
            known: q, NaN where the server did not say.
            judgement: the server's scores.
            rows: which of its states these are.
        """
        if _is_forward(self.objective):
            return (known - student.exp()).cpu().numpy()
        assert isinstance(self.objective, c.TopK)
        scores = judgement.on_support(rows, student, self.objective.support, self.objective.k)
        nobody = torch.zeros(len(student), dtype=torch.long, device=student.device)
        ones = student.new_ones(len(student))
        _, gradient = logit_gradient(self.objective, student, scores, nobody, ones)
        return -gradient.cpu().numpy()


def require_listable(name: str, objective: c.Objective, teacher: ServedTeacher) -> None:
    """Refuse an objective whose move needs more of a teacher than its server gives.

    A `top_k` takes its own support and no more, and the forward KL, q - p, each token alone.

    Raises:
        UsageError: naming the setting of the objective, and what works.
    """
    if teacher.gives_all:
        return
    instead = "use top_k with support teacher, or {type: full, divergence: forward_kl}"
    where = ""
    if name != "objective":
        instead += ", or leave it out"
        where = f"{name}: "
    if isinstance(objective, c.Sampled) and not _is_forward(objective):
        raise UsageError(
            f"{where}the mean of objective.type sampled over the token drawn needs the teacher's "
            f"whole distribution, and its server gives at most {teacher.capabilities.max_logprobs} "
            f"of {teacher.rows:,} log-probabilities a token; {instead}"
        )
    listable = c.Sampled() if _is_forward(objective) else objective  # as a token's own does
    try:
        require_servable(listable, teacher, instead)
    except UsageError as error:
        raise UsageError(f"{where}{error}") from None


def _is_forward(objective: c.Objective) -> bool:
    """Whether the move is q - p."""
    return (
        isinstance(objective, c.Full | c.Sampled)
        and isinstance(objective.divergence, c.ForwardKL)
        and isinstance(objective.target, c.TeacherTarget)
        and getattr(objective, "bound", None) is None
    )


def as_move(objective: c.Objective) -> ObjectiveMove:
    """The move of an objective.

    Raises:
        ValueError: the objective needs more than p and q: a reference or what comes downstream.
    """
    needs = [
        name
        for name, needed in (
            ("target", objective.target.type in ("extrapolated", "shift")),
            ("brake", objective.brake is not None),
            ("return_to_go", objective.return_to_go is not None),
        )
        if needed
    ]
    if needs:
        raise ValueError(
            f"objective.{needs[0]} needs other models or states than student and teacher at this "
            "node, so it has no move on a few children alone; take `node_moves` over the whole "
            "vocabulary and restrict it with slice or lump"
        )
    return ObjectiveMove(objective)


def _fitted(objective: c.Objective, width: int) -> c.Objective:
    """The objective with no more support than there are tokens."""
    if isinstance(objective, c.TopK) and objective.k > width:
        return objective.model_copy(update={"k": width})
    return objective


def _log(p: ndarray, least: float) -> Tensor:
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.maximum(np.log(p), least))

"""Rules on what is free to know, and on whether teacher and engine are what they should be."""

from tutelage.signals.causes import (
    DRIFT,
    FIRST_TOKEN,
    SOUNDNESS,
    STATIC,
    TEACHER_CUT,
    Cause,
    Confidence,
    abilities,
    ability_gap,
    cuts,
    first_token_ratio,
    lengths,
    number,
    outcome,
    runs_on,
    sure_and_wrong,
    teacher_is_no_better,
)
from tutelage.signals.history import JUMP, History, spread_of_same_tokens

NEVER_STOPS = 1e-3  # reported: a teacher that stops elsewhere gives the student's stop id less
STOPS = 0.1  # of the student, where it did stop
STOP_REWARD = -0.5  # nats; -0.69 is a teacher that stops there half of the time
NOTHING_TO_LEARN = 1e-3  # nats a token
SOLVES_NOTHING = 0.1
READS_NOTHING = 0.01  # nats, of one token's scores over its contexts
UNSURE = -0.5  # nats; the entropy of any text's single tokens is larger


def stop_ids(h: History) -> Cause | None:
    """The sides stop at different ids, or the teacher would go on where the student ends."""
    noted = h.noted.get("stop_ids_differ")
    reward, theirs, own = (h.at_start(f"stop/{key}") for key in ("reward", "teacher", "student"))
    loses = reward is not None and reward < STOP_REWARD
    body = h.at_start("reward/mean")
    # Without differing ids a teacher of another pattern loses nats everywhere, not at the end.
    only_there = loses and body is not None and reward is not None and reward < 3 * body
    if noted is None and not only_there:
        return None
    evidence = [noted] if noted else []
    if reward is not None:
        evidence.append(
            f"the reward of stopping where the student stops is {number(reward)} nats at the start"
        )
    if theirs is not None and own is not None:
        evidence.append(
            f"there the student gives its stop ids {number(own)}, the teacher {number(theirs)}"
        )
    never = theirs is not None and own is not None and own >= STOPS and theirs < NEVER_STOPS
    if noted and runs_on(h):
        evidence += cuts(h)
    confidence: Confidence = "low"
    if noted and (loses or runs_on(h)):
        confidence = "high"
    elif only_there:
        confidence = "high" if never else "medium"
    return Cause(
        name="stop_ids",
        confidence=confidence,
        stage=STATIC,
        text="Student and teacher end their answers with different tokens, so the student is "
        "taught not to stop",
        evidence=(*evidence, *lengths(h)),
        advice="give both the same eos_token_id in generation_config.json, config.json and "
        "tokenizer, or train the student first to end as the teacher does",
        source="EOS disagreement (StableOPD; ms-swift #9526)",
        signal="stop/reward",
    )


def template(h: History) -> Cause | None:
    """The teacher reads another prompt than it should."""
    if h.config is None:
        return None
    teacher = h.config.teacher_model
    sides = {"teacher": teacher, "student": h.config.student}
    strange = {
        role: side.chat_template
        for role, side in sides.items()
        if side.chat_template not in (None, "own")
    }
    foreign = bool(strange)
    noted = h.noted.get("templates_differ")
    own = teacher.own_prompt
    if not (own or noted or foreign):
        return None
    weak = teacher_is_no_better(h)
    ratio = first_token_ratio(h)
    early = ratio is not None and ratio > FIRST_TOKEN
    evidence = [noted] if noted else []
    evidence += [f"{role}.chat_template is {path}, not its own" for role, path in strange.items()]
    if "rendered" in h.noted:
        evidence.append(h.noted["rendered"])
    evidence += abilities(h)
    if ratio is not None:
        evidence.append(f"the first token's reverse KL is {number(ratio)} times the others'")
    suspicious = foreign or noted is not None
    confidence: Confidence = "low"
    if weak and suspicious:
        confidence = "high"
    elif weak or (early and suspicious):
        confidence = "medium"
    if confidence == "low" and not suspicious:
        return None  # a prompt of its own, on purpose, that it reads well
    return Cause(
        name="template",
        confidence=confidence,
        stage=STATIC,
        text="The models read prompts in a form they were not trained on",
        evidence=tuple(evidence),
        advice="let each side read its own template, and see both with tutelage preview",
        change={f"{role}.chat_template": "own" for role in strange or ["teacher"]},
        source="template mismatch (a published OPSD run; tinker-cookbook #796)",
        signal="kl/reverse",
    )


def precision(h: History) -> Cause | None:
    """The teacher's weights are rounded more coarsely than the student's."""
    noted = h.noted.get("precisions_differ")
    if noted is None or h.config is None:
        return None
    return Cause(
        name="precision",
        confidence="medium" if teacher_is_no_better(h) else "low",
        stage=STATIC,
        text="The teacher's weights are rounded more coarsely than the student's",
        evidence=(noted, *outcome(h)),
        advice="load the teacher in the student's precision",
        change={"teacher.dtype": h.config.student.dtype},
        source="engine and precision gap (bfloat16 ties; 2604.13016 code)",
        signal="kl/reverse",
    )


def vocabulary(h: History) -> Cause | None:
    """The heads have different sizes."""
    noted = h.noted.get("vocabularies_differ")
    if noted is None:
        return None
    return Cause(
        name="vocabulary",
        confidence="low",
        stage=STATIC,
        text="The heads of the two models have different sizes",
        evidence=(noted, *outcome(h)),
        advice="nothing, where the further rows only pad: they are left out of both sides; else "
        "take the checkpoint that belongs to the tokenizer",
        source="padded vocabularies (trl #2215; Model-Optimizer #2489)",
    )


def same_model(h: History) -> Cause | None:
    """The teacher says what the student says: nothing to learn."""
    start = h.at_start("kl/reverse")
    config = h.config
    same = (
        config is not None
        and config.teacher_model.path == config.student.path
        and not config.teacher_model.own_prompt
    )
    if start is None or not (start < NOTHING_TO_LEARN or same):
        return None
    return Cause(
        name="same_model",
        confidence="high" if start < NOTHING_TO_LEARN else "medium",
        stage=SOUNDNESS,
        text="The teacher says what the student says: there is nothing to learn",
        evidence=(
            f"the reverse KL at the start is {number(start)} nats a token",
            *(["student.path and teacher.path are one folder"] if same else []),
            *outcome(h),
        ),
        advice="name another model in teacher.path, or let this one read more than the student "
        "(teacher.user_prompt with the answer)",
        source="same-model zero test (the identity S = T)",
        signal="kl/reverse",
    )


def broken_teacher(h: History) -> Cause | None:
    """What answers in the teacher's name is not the teacher."""
    evidence: list[str] = []
    confidence: Confidence | None = None
    blind = False
    for when, rollouts in (("at the start", h.rollouts), ("at the end", h.last_rollouts)):
        spread = spread_of_same_tokens(rollouts)
        if spread is None:
            continue
        varies, ours, mean = spread
        if varies < READS_NOTHING < ours and mean < UNSURE:
            confidence, blind = "high", True
            evidence.append(
                f"{when} its log-probability of a token varies by {number(varies)} nats over "
                f"contexts, the student's by {number(ours)}: it does not read what it scores"
            )
    if (step := h.jump()) is not None:
        confidence = confidence or "medium"
        evidence.append(
            f"at step {step} the reverse KL rose by {JUMP:g} times or more, while the student "
            "hardly moved: another model may answer since"
        )
    theirs, gap = h.measured("teacher/accuracy", h.begin), ability_gap(h)
    truncated = h.at_start("teacher/truncated") or 0.0
    mass = h.at_start("overlap/mass_student")
    foreign = mass is not None and mass < 0.8
    if theirs and gap and theirs[2] < SOLVES_NOTHING and gap[1] < 0:
        if truncated < TEACHER_CUT or foreign:
            confidence = "high"
        evidence += abilities(h)
    elif teacher_is_no_better(h) and (claimed := sure_and_wrong(h)) is not None:
        confidence = confidence or "medium"
        evidence += abilities(h)
        evidence.append(
            f"its entropy says that it sees one answer alone in {claimed:.0%} of the questions, so "
            "it is sure and wrong"
        )
    if other := h.noted.get("server_root"):
        confidence = confidence or "low"
        evidence.append(other)
    if confidence is None:
        return None
    served = h.config is not None and h.config.teacher_model.server is not None
    if (
        h.config is not None
        and h.config.teacher_model.own_prompt
        and confidence == "high"
        and not blind
    ):
        confidence = "medium"  # a template explains as much
    return Cause(
        name="broken_teacher",
        confidence=confidence,
        stage=SOUNDNESS,
        text="What scores in the teacher's name is not the teacher it should be",
        evidence=tuple(evidence),
        advice=(
            "ask the server which model it serves (tutelage doctor -c RUN/config.yaml), and score "
            "a right answer by hand"
            if served
            else "check that teacher.path holds the weights and the tokenizer of one model "
            "(tutelage eval teacher.path)"
        ),
        source="teacher determinism and identity (SkyRL #2256; NeMo-RL #3272)",
        signal="sequence_reward/auroc",
    )


def engine_mismatch(h: History) -> Cause | None:
    """The sampler's log-probabilities are not the trainer's, of the same weights."""
    now = h.middle("rollout/drift_k3", 0)
    age = h.middle("rollout/age", 0) or 0.0
    if now is None or now <= DRIFT or age > 0:
        return None
    return Cause(
        name="engine_mismatch",
        confidence="high" if now > 10 * DRIFT else "medium",
        stage=SOUNDNESS,
        text="The student that samples is not the student that trains",
        evidence=(f"their log-probabilities differ by a k3 of {number(now)} nats a token",),
        advice="run the student's server in float32 with its default --logprobs-mode, and check "
        "that it takes the synced weights",
        source="engine mismatch (k3 > 1e-3; vLLM and verl rollout correction)",
        signal="rollout/drift_k3",
    )

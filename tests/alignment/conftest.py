"""A world small enough that every success can be enumerated."""

import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tutelage.alignment.bench import Bench
from tutelage.alignment.moves import as_move
from tutelage.alignment.spines import Candidate
from tutelage.config import AlignConfig, ForwardKL, Full, Pattern, ReverseKL
from tutelage.data.verify import make_verifier
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path
from tutelage.models.local import LocalModel
from tutelage.types import Prompt, RenderedPrompt

WORDS = ["<end>", "a", "b", "c", "d", "?"]
LENGTH = 4
LAST_IS_A = Pattern(pattern=r"([ab])[^ab]*$")
MOVES = {
    "objective": as_move(Full(divergence=ReverseKL())),
    "forward_kl": as_move(Full(divergence=ForwardKL())),
}


def small_tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="?"))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


def small_model(seed: int) -> LocalModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(WORDS),
        n_positions=16,
        n_embd=12,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.6,
    )
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    return LocalModel(model=model, tokenizer=small_tokenizer())


@dataclass
class World:
    """A student, a teacher, some questions, and the truth about them."""

    student: LocalModel
    teacher: LocalModel
    questions: list[RenderedPrompt]

    def bench(self, seed: int = 0, **settings) -> Bench:
        given = {"questions": len(self.questions), "samples": 8, "spines": 4, **settings}
        return Bench(
            student=self.student,
            sampler=self.student,
            candidates=[Candidate(name="teacher", model=self.teacher, view=None)],
            objectives=MOVES,
            prompts=self.questions,
            verify=make_verifier(LAST_IS_A),
            settings=AlignConfig(**given),
            max_new_tokens=LENGTH,
            temperature=1.0,
            use_chat_template=True,
            seed=seed,
        )

    def next_tokens(self, model: LocalModel, question: int, prefix: tuple[int, ...]) -> np.ndarray:
        key = (id(model), question, prefix)
        if key not in self._cache:
            ids = torch.tensor([self.questions[question].ids + prefix])
            with torch.no_grad():
                logits = model.model(ids).logits[0, -1].double()
            self._cache[key] = logits.softmax(-1).numpy()
        return self._cache[key]

    @cached_property
    def _cache(self) -> dict:
        return {}

    def success(self, question: int, prefix: tuple[int, ...]) -> float:
        """Chance of a right answer after a prefix, over all continuations."""
        key = ("s", question, prefix)
        if key not in self._cache:
            if len(prefix) == LENGTH or (prefix and prefix[-1] == 0):
                prompt = self.questions[question].prompt
                right = make_verifier(LAST_IS_A)(prompt, self.student.decode_text(prefix))
                self._cache[key] = float(right)
            else:
                p = self.next_tokens(self.student, question, prefix)
                values = [self.success(question, (*prefix, k)) for k in range(len(WORDS))]
                self._cache[key] = float(p @ np.array(values))
        return self._cache[key]

    def states(self, question: int, prefix: tuple[int, ...] = (), chance: float = 1.0):
        """(rho, p, q, s) of every state the student can visit."""
        p = self.next_tokens(self.student, question, prefix)
        q = self.next_tokens(self.teacher, question, prefix)
        s = np.array([self.success(question, (*prefix, k)) for k in range(len(WORDS))])
        yield chance, p, q, s
        if len(prefix) + 1 < LENGTH:
            for k in range(1, len(WORDS)):
                yield from self.states(question, (*prefix, k), chance * p[k])


@pytest.fixture(scope="session")
def world() -> World:
    questions = [
        RenderedPrompt(prompt=Prompt(id=f"q{i}", text="?", answer="a"), ids=ids)
        for i, ids in enumerate([(5, 1), (5, 2, 3), (5, 4)])
    ]
    return World(small_model(3), small_model(11), questions)


@pytest.fixture
def tree(tmp_path):
    """Settings of a small alignment of the embedded models."""
    rows = [
        {"id": p.id, "messages": [{"role": "user", "content": p.question}], "answer": p.answer}
        for p in EMBEDDED_SPEC.task.eval_prompts(24, seed=3)
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "student": {"path": str(model_path("student"))},
        "teacher": {"path": str(model_path("compatible"))},
        "data": {"prompts": str(prompts), "verifier": VERIFIER.model_dump()},
        "rollout": {"max_new_tokens": 28, "batch_size": 64},
        "align": {"questions": 6, "spines": 2, "samples": 6, "budget": 6000, "rollouts": 4},
    }

"""On-policy distillation, complete, to read: no batching, no cache, no options, no checkpoints.

    python docs/opd_in_one_file.py STUDENT TEACHER PROMPTS.jsonl

The student answers, the teacher scores every token of the answer, the student moves towards the
teacher. PROMPTS has a line {"id": ..., "question": ...} a prompt. Losses are those of `tutelage
train` with the same seed; a test holds them to that.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

STEPS, PROMPTS_PER_STEP, GROUP = 20, 8, 2  # GROUP answers of each prompt
MAX_NEW_TOKENS, K = 28, 16  # K tokens of the student are compared at every state
LR, CLIP, SEED = 1e-3, 1.0, 0


def load(path):
    """A model in float32, dropout off."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def read(path, tokenizer):
    """(id, token ids) of every prompt."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [(row["id"], encode(row["question"], tokenizer)) for row in rows]


def encode(question, tokenizer):
    """Token ids of a question: a user's turn where the model has a chat template."""
    if tokenizer.chat_template is None:
        return tokenizer(question)["input_ids"]
    turns = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def stop_ids(model, tokenizer):
    """Ids that end an answer, wherever the model's files name them."""
    said = [x.eos_token_id for x in (model.generation_config, model.config, tokenizer)]
    return {i for ids in said if ids is not None for i in (ids if isinstance(ids, list) else [ids])}


def prompts_of(step, prompts):
    """Every epoch walks all prompts in an order of its own."""
    epoch, place = divmod(step, len(prompts) // PROMPTS_PER_STEP)
    order = np.random.default_rng([SEED, epoch]).permutation(len(prompts))
    return [prompts[i] for i in order[place * PROMPTS_PER_STEP :][:PROMPTS_PER_STEP]]


def uniforms(*key):
    """One number in [0, 1) for each new token, from the key alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    philox = np.random.Philox(key=int.from_bytes(digest, "little"))
    return np.random.Generator(philox).random(MAX_NEW_TOKENS)


@torch.no_grad()
def sample(student, prompt, numbers, stops, vocabulary):
    """The student's answer: each token is where the cumulative probability passes the number."""
    answer = []
    for number in numbers:
        logits = student(torch.tensor([prompt + answer])).logits[0, -1, :vocabulary]
        cumulative = logits.log_softmax(-1).exp().cumsum(-1)
        goal = torch.tensor(number).float() * cumulative[-1]
        answer.append(int(torch.searchsorted(cumulative, goal, right=True)))
        if answer[-1] in stops:
            break
    return answer


def logprobs(model, prompt, answer, vocabulary):
    """log p [T, V] of the next token at each of the answer's T states."""
    logits = model(torch.tensor([prompt + answer])).logits[0]
    return logits[len(prompt) - 1 : -1, :vocabulary].log_softmax(-1)


def reverse_kl(p, q):
    """KL(student || teacher) [T] on the student's K likeliest tokens and a bucket for the rest."""
    likely = p.detach().topk(min(K, p.shape[-1] - 1), -1).indices
    p, q = with_rest(p.gather(-1, likely)), with_rest(q.gather(-1, likely))
    return (p.exp() * (p - q)).sum(-1)


def with_rest(logp):
    """The log-probabilities, and log(1 - their sum)."""
    rest = (1 - logp.exp().sum(-1, keepdim=True)).clamp_min(1e-14).log()
    return torch.cat([logp, rest], -1)


def train(student_path, teacher_path, prompts_path):
    """Losses of the steps, and the student."""
    tokenizer = AutoTokenizer.from_pretrained(student_path)
    student, teacher = load(student_path), load(teacher_path)
    stops, prompts = stop_ids(student, tokenizer), read(prompts_path, tokenizer)
    # Heads are padded to different sizes; a token that one side lacks is nobody's.
    vocabulary = min(m.get_output_embeddings().weight.shape[0] for m in (student, teacher))
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        answers = [
            (prompt, sample(student, prompt, uniforms(SEED, step, name, index), stops, vocabulary))
            for name, prompt in prompts_of(step, prompts)
            for index in range(GROUP)
        ]
        tokens = sum(len(answer) for _, answer in answers)
        loss = 0.0
        for prompt, answer in answers:
            with torch.no_grad():
                q = logprobs(teacher, prompt, answer, vocabulary)
            p = logprobs(student, prompt, answer, vocabulary)
            part = reverse_kl(p, q).sum() / tokens
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(student.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
        print(f"step {step + 1}  loss {loss:.4f}  {tokens} tokens", flush=True)
    return losses, student


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    train(*sys.argv[1:])

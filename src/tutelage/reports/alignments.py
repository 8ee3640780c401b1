"""What `align` found: per teacher, after right and wrong answers, by depth, per objective."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.reports.figures import Figure
from tutelage.reports.records import Notes, document, mapping, number, pick, rows
from tutelage.reports.results import MOST_ROWS, Result, Table, dots, estimate, text_of


def read_alignment(path: Path, name: str, place: str) -> Result:
    """What `align` found, or how far it has come."""
    notes = Notes()
    found = document(path / "alignment.json", notes, wanted=True)
    teachers = mapping(found, "teachers")
    lead = _alignment_lead(found, teachers)
    if not found:
        branches = sum(1 for _ in rows(path / "rollouts.jsonl", notes))
        lead = [f"Not finished: {branches:,} branches are done; --resume goes on."]
    return Result(
        name=name,
        kind="align",
        lead=lead,
        figures=_alignment_figures(teachers, place),
        tables=_alignment_tables(found, teachers),
        notes=notes,
        config_text=text_of(path / "config.yaml"),
        environment=document(path / "environment.json", notes),
    )


def _alignment_figures(teachers: Mapping[str, Any], place: str) -> list[Figure]:
    def own(teacher: str, *keys: str) -> Any:
        return pick(teachers, teacher, "objectives", "objective", *keys)

    def by(kind: str) -> dict[str, dict[str, Any]]:
        groups = dict.fromkeys(g for t in teachers for g in mapping(own(t, "by", kind)))
        if len(groups) < 2:
            return {}
        return {
            str(g): {t: estimate(own(t, "by", kind, g, "advantage")) for t in teachers}
            for g in groups
        }

    advantage = {"all": {t: estimate(own(t, "advantage")) for t in teachers}}
    unit = "advantage, chance of a right answer"
    objectives = dict.fromkeys(o for t in teachers for o in mapping(teachers, t, "objectives"))
    made = [
        dots(
            f"{place}-advantage",
            "What one token of the teacher adds",
            "Change of the chance of a right answer if the teacher chose the next token, mean over "
            "the student's own states, with 95 % intervals over questions. Right of 0 the teacher "
            "helps; left of 0 it harms.",
            unit,
            advantage,
        ),
        dots(
            f"{place}-outcome",
            "After right and after wrong answers",
            "The same, by whether the rollout that the state comes from was right in the end.",
            unit,
            by("outcome"),
        ),
        dots(
            f"{place}-depth",
            "By depth",
            "The same, by how many tokens into the answer. A teacher that helps early may be lost "
            "late.",
            unit,
            by("depth"),
        ),
        dots(
            f"{place}-direction",
            "Does the update point where success lies?",
            "A, the alignment of each objective's update with the ideal gradient: 1 where all of "
            "it points to success. It says nothing of the size: read it beside the advantage.",
            "A, −1 to 1",
            {
                o: {t: estimate(pick(teachers, t, "objectives", o, "alignment")) for t in teachers}
                for o in objectives
            },
        ),
    ]
    return [figure for figure in made if figure]


def _alignment_tables(found: Mapping[str, Any], teachers: Mapping[str, Any]) -> list[Table]:
    pooled = [
        [
            t,
            o,
            *(
                estimate(pick(teachers, t, "objectives", o, key))
                for key in ("advantage", "dot", "alignment", "mean_cosine")
            ),
            number(pick(teachers, t, "objectives", o, "reliability")),
        ]
        for t in teachers
        for o in mapping(teachers, t, "objectives")
    ]
    header = ("teacher", "objective", "advantage", "dot", "A", "mean cosine", "reliability")
    tables = [Table("All estimates", header, pooled[:MOST_ROWS])] if pooled else []
    if differences := mapping(found, "differences"):
        tables.append(
            Table(
                "Differences between teachers",
                ("difference", "advantage", "dot", "A"),
                [
                    [label, *(estimate(pick(d, k)) for k in ("advantage", "dot", "alignment"))]
                    for label, d in list(differences.items())[:MOST_ROWS]
                ],
                "Paired on the same states. Told apart where the interval excludes 0.",
            )
        )
    return tables


def _alignment_lead(found: Mapping[str, Any], teachers: Mapping[str, Any]) -> list[str]:
    lead = []
    for teacher in teachers:
        known = estimate(pick(teachers, teacher, "objectives", "objective", "advantage"))
        if known is None:
            lead.append(f"{teacher}: the advantage is unknown.")
            continue
        value, ends = known
        told = f"{value:+.4f}" + (f" [{ends[0]:+.4f}, {ends[1]:+.4f}]" if ends else "")
        words = "is not told apart from no help"
        if ends and ends[0] > 0:
            words = "helps"
        elif ends and ends[1] < 0:
            words = "harms"
        lead.append(f"{teacher} {words}: advantage {told}.")
    nodes, tokens = number(found.get("nodes")), number(found.get("tokens"))
    if nodes is not None and tokens is not None:
        lead.append(f"{nodes:,.0f} states, {tokens:,.0f} targeted tokens.")
    if best := mapping(found, "best_teacher"):
        apart = sum(isinstance(teacher, str) for teacher in best.values())
        lead.append(f"One teacher is told apart as the best on {apart} of {len(best)} questions.")
    return lead

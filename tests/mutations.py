"""Does each guard have a test that fails without it? Takes minutes; not part of `make test`.

    python tests/mutations.py [CASE ...] [--list]

Each row of GUARDS takes one guard out of a copy of the tree and runs the test that claims it. A
guard whose test still passes has survived: that promise is not tested. A text that is no longer
found exactly once is an error, so the table cannot go stale unseen.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Guard(NamedTuple):
    """A guard, how it is taken out, and who must notice."""

    case: str
    """Number in docs/reliability.md."""
    file: str
    """Below src/tutelage."""
    text: str
    """Exact source, found once."""
    instead: str
    """The same without the guard."""
    test: str
    """Below tests: file::name."""


FAULTS = "reliability/test_faults.py::"
KILLS = "reliability/test_kills.py::"
KILLED_TWENTY = KILLS + "test_a_run_that_is_killed_twenty_times_is_the_straight_one_to_the_bit"
STOPS = "reliability/test_stops.py::"
RESUME = "reliability/test_resume.py::test_a_stopped_run_is_the_straight_one_to_the_bit"
TORN = "flow/test_keeping.py::test_torn_last_lines_are_cut_before_a_resumed_run_writes"
CHANGES = FAULTS + "test_changes_are_listed_and_refused_unless_they_are_named"
NOT_FINITE = (
    FAULTS + "test_a_step_that_is_not_finite_is_neither_taken_nor_saved_and_is_kept_to_look_at"
)
OOM = FAULTS + "test_a_step_that_memory_does_not_hold_is_taken_in_smaller_parts"
ETA = (
    "watching/test_watch.py::test_remaining_time_counts_steps_and_evaluations_and_is_never_negative"
)
CLIENT = "servers/test_client.py::"
TEACHER = "servers/test_teacher.py::"
SHAPES = CLIENT + "test_an_answer_that_is_not_what_was_asked_is_tried_once_more_and_then_an_error"
ADDRESS = CLIENT + "test_an_address_that_cannot_be_right_is_refused"
SECRETS = "servers/test_secrets.py::"
HOSTILE = "models/test_hostile.py::"
YAML = "cli/test_errors.py::test_yaml_that_would_grow_or_hang_is_refused_at_once"
PLACES = "flow/test_places.py::"
FAILING = "scale/test_failing.py::"
RANKS = "fan_out/test_ray_ranks.py::"

GUARDS = (
    # --- several processes ---
    Guard(
        "21",
        "ranks/watch.py",
        "            if now - counts[rank][1] > self.silence_s:",
        "            if False:",
        FAILING + "test_a_rank_that_hangs_is_named_at_the_deadline",
    ),
    Guard(
        "21",
        "ranks/watch.py",
        "        silent = self._silent_since(3 * self.every)",
        "        silent: list[int] = []",
        FAILING + "test_a_rank_that_is_killed_ends_the_other_with_its_number",
    ),
    Guard(
        "21",
        "ranks/beginning.py",
        '    require_alike(ranks, settings, "settings")\n',
        "",
        FAILING + "test_ranks_with_other_settings_are_refused_and_the_setting_is_named",
    ),
    Guard(
        "21",
        "ranks/beginning.py",
        "    if count % ranks.size:",
        "    if False:",
        FAILING + "test_a_step_that_cannot_be_dealt_is_refused",
    ),
    Guard(
        "21",
        "ranks/joining.py",
        "        if place is not None and place[1] > 1:",
        "        if False:",
        FAILING + "test_ranks_and_the_setting_need_each_other",
    ),
    Guard(
        "21",
        "ranks/joining.py",
        "            error.told = not tells",
        "            pass",
        "scale/test_together.py::test_ctrl_c_at_the_first_rank_ends_both",
    ),
    Guard(
        "21",
        "scale/placing.py",
        "            if self._failed is not None:",
        "            if False:",
        RANKS + "test_a_failure_that_is_no_death_is_that_error_here_and_is_not_tried_again",
    ),
    Guard(
        "21",
        "scale/placing.py",
        "range(self._engine.restarts + 1)",
        "range(self._engine.restarts + 2)",
        RANKS + "test_workers_that_always_die_begin_again_as_often_as_is_allowed",
    ),
    Guard(
        "21",
        "scale/worker.py",
        "    if differ := [name for name in driver if driver[name] != worker.get(name)]:",
        "    if differ := []:",
        RANKS + "test_a_worker_of_other_versions_is_refused",
    ),
    Guard(
        "21",
        "training.py",
        "    if post.again and (post.begun or not overwrite):",
        "    if False:",
        "scale/test_ray_training.py::"
        "test_a_worker_that_is_killed_begins_again_and_the_run_is_the_undisturbed_one_to_the_bit",
    ),
    # --- stops, kills and what a checkpoint holds ---
    Guard(
        "1",
        "runs/checkpoints.py",
        "    clear_unfinished(root)\n    for _",
        "    for _",
        "flow/test_keeping.py::test_a_kill_while_a_checkpoint_is_replaced_loses_none",
    ),
    Guard(
        "1",
        "runs/checkpoints.py",
        'return "its manifest is missing or damaged, so it was never finished"',
        "return None",
        "flow/test_training.py::test_a_checkpoint_without_its_manifest_was_never_finished",
    ),
    Guard(
        "2",
        "runs/interrupts.py",
        "            if self._abandons:\n                raise Stop",
        "            pass",
        STOPS + "test_long_work_is_abandoned_and_not_waited_for",
    ),
    Guard(
        "2",
        "runs/interrupts.py",
        "(signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)",
        "(signal.SIGTERM, signal.SIGINT)",
        STOPS + "test_sigusr1_asks_for_the_same",
    ),
    Guard(
        "2",
        "training.py",
        "    except Stop:\n        trainer.heed()\n",
        "    except Stop:\n",
        STOPS + "test_a_signal_ends_any_phase_with_75_and_the_run_goes_on_to_the_bit",
    ),
    Guard(
        "2",
        "trainer.py",
        "            self.optimizer.zero_grad(set_to_none=True)  # of a step that was abandoned\n"
        "            self.save()\n",
        "",
        STOPS + "test_a_signal_ends_any_phase_with_75_and_the_run_goes_on_to_the_bit",
    ),
    Guard(
        "2",
        "cli/__init__.py",
        "with interrupts, interrupts.abandoning():",
        "with interrupts:",
        STOPS + "test_a_report_that_is_stopped_says_so",
    ),
    Guard(
        "3",
        "runs/interrupts.py",
        "            raise KeyboardInterrupt",
        "            pass",
        STOPS + "test_a_second_request_does_not_wait_and_leaves_the_old_checkpoint",
    ),
    Guard(
        "3",
        "runs/interrupts.py",
        "_SAME_REQUEST_S = 1.0",
        "_SAME_REQUEST_S = -1.0",
        STOPS + "test_a_signal_that_a_launcher_repeats_is_one_request",
    ),
    Guard("5", "keeping.py", "restore_optimizer(checkpoint, self.optimizer)", "pass", RESUME),
    Guard(
        "5",
        "trainer.py",
        "self.pending = [[rollout_from_json(r, prompts) for r in step] for step in "
        'state["pending"]]',
        "pass",
        RESUME,
    ),
    Guard("5", "keeping.py", "self.average.restore(checkpoint.path)", "pass", RESUME),
    Guard("5", "trainer.py", "        self.run.truncate_after(self.step)\n", "", KILLED_TWENTY),
    Guard("5", "trainer.py", "self.run.cut_torn_lines()\n        state", "state", TORN),
    Guard("6", "config/changes.py", "    if refused:", "    if False:", CHANGES),
    Guard(
        "6",
        "config/changes.py",
        " or key.startswith(NEVER_CHANGEABLE)\n    }",
        "\n    }",
        FAULTS + "test_a_change_that_does_not_exist_or_cannot_be_is_refused",
    ),
    Guard(
        "8",
        "runs/checkpoints.py",
        "        if _digest(file) != digest:",
        "        if False:",
        "flow/test_training.py::test_resume_skips_a_damaged_checkpoint_and_says_so",
    ),
    Guard(
        "8",
        "keeping.py",
        "        set_aside(self.run.checkpoints, skipped)\n",
        "",
        "flow/test_keeping.py::test_damaged_checkpoints_are_set_aside_and_never_push_out_good_ones",
    ),
    Guard(
        "9",
        "runs/checkpoints.py",
        'if whole else ""',
        'if False else ""',
        FAULTS + "test_a_checkpoint_without_its_optimizer_is_refused_and_its_weights_are_offered",
    ),
    Guard(
        "9",
        "runs/checkpoints.py",
        'return bool(weights) and all(_digest(path / n) == files[n]["blake2b"] for n in weights)',
        "return bool(weights)",
        FAULTS + "test_a_checkpoint_without_its_optimizer_is_refused_and_its_weights_are_offered",
    ),
    # --- the disk and neighbours ---
    Guard(
        "10",
        "runs/checkpoints.py",
        'if attempt == "first" and prunes:',
        "if False:",
        FAULTS + "test_a_save_that_the_disk_does_not_take_is_tried_once_more_without_old_ones",
    ),
    Guard(
        "10",
        "runs/checkpoints.py",
        "        shutil.rmtree(temporary, ignore_errors=True)\n        raise",
        "        raise",
        FAULTS + "test_a_disk_that_stays_full_ends_the_run_and_keeps_the_newest_checkpoint",
    ),
    Guard(
        "10",
        "runs/directory.py",
        "(errno.ENOSPC, errno.EDQUOT, errno.EFBIG)",
        "(errno.EDQUOT, errno.EFBIG)",
        FAULTS + "test_a_real_disk_fills_up_and_nothing_good_is_lost",
    ),
    Guard(
        "11",
        "runs/directory.py",
        "            if not says_full(error):\n                raise\n\n    def write_waiting",
        "            raise\n\n    def write_waiting",
        FAULTS + "test_records_that_the_disk_does_not_take_wait_for_it_in_their_order",
    ),
    Guard(
        "12",
        "runs/lock.py",
        "    except OSError as error:\n        raise UsageError(\n"
        '            f"run directory {path} cannot be written',
        "    except ZeroDivisionError as error:\n        raise UsageError(\n"
        '            f"run directory {path} cannot be written',
        FAULTS + "test_a_place_that_cannot_be_written_is_known_before_models_are_loaded",
    ),
    Guard(
        "13",
        "runs/lock.py",
        "if not _take(stream) or not _is_at(path / LOCK, stream):",
        "if False:",
        FAULTS + "test_a_second_process_in_a_run_directory_is_told_who_has_it",
    ),
    Guard(
        "14", "watching/view.py", "self.step_s - max(0.0, since_s)", "self.step_s - since_s", ETA
    ),
    # --- numbers and memory ---
    Guard(
        "15",
        "optimizing.py",
        "usable and math.isfinite(norm) and math.isfinite(loss)",
        "usable and math.isfinite(norm)",
        NOT_FINITE,
    ),
    Guard(
        "16",
        "optimizing.py",
        "usable and math.isfinite(norm) and math.isfinite(loss)",
        "usable and math.isfinite(loss)",
        NOT_FINITE,
    ),
    Guard(
        "17",
        "optimizing.py",
        "usable and math.isfinite(norm) and math.isfinite(loss)",
        "math.isfinite(norm) and math.isfinite(loss)",
        NOT_FINITE,
    ),
    Guard(
        "15",
        "trainer.py",
        "            keep_not_applied(\n",
        "            (lambda *words: None)(\n",
        NOT_FINITE,
    ),
    Guard(
        "15",
        "trainer.py",
        "signals.non_finite(self.steps, guards.non_finite_limit),",
        "None,",
        FAULTS + "test_a_run_of_them_ends_with_7_and_says_what_to_do",
    ),
    Guard(
        "15",
        "keeping.py",
        "if self.ranks.any(not finite_here):",
        "if False:",
        "flow/test_keeping.py::test_weights_that_are_not_finite_are_never_saved",
    ),
    Guard(
        "19",
        "trainer.py",
        "noticed += warnings(self.history())",
        "pass",
        FAULTS + "test_answers_that_never_end_are_a_signal_that_says_where_to_look",
    ),
    Guard(
        "20",
        "models/memory.py",
        "            if not out_of_memory(error):\n",
        "            if True:\n",
        OOM,
    ),
    Guard(
        "20",
        "trainer.py",
        "            self.optimizer.zero_grad(set_to_none=True)\n            self.micro_batch_size",
        "            self.micro_batch_size",
        OOM,
    ),
    Guard(
        "20",
        "trainer.py",
        'self.micro_batch_size = state["micro_batch_size"]',
        "pass",
        FAULTS + "test_a_resumed_run_remembers_what_memory_holds",
    ),
    # --- the teacher's numbers ---
    Guard(
        "17",
        "models/served/answers.py",
        "not IMPOSSIBLE < value <= _ROUNDING",
        "False",
        CLIENT + "test_a_nan_log_probability_is_an_error",
    ),
    Guard("17", "models/served/answers.py", "(mass > 1 + _ROUNDING).any()", "False", SHAPES),
    # --- servers ---
    Guard(
        "22",
        "models/served/client.py",
        "retry=tenacity.retry_if_exception_type(_MayPass)",
        "retry=tenacity.retry_never",
        CLIENT + "test_a_name_that_nobody_knows_is_tried_again_and_then_an_error_of_exit_code_6",
    ),
    Guard("22", "config/server.py", "if parts.username or parts.password:", "if False:", ADDRESS),
    Guard(
        "23",
        "models/served/client.py",
        "answer.result(patience + _GRACE_S)",
        "answer.result()",
        CLIENT + "test_a_server_that_never_answers_or_drips_is_given_up_at_its_deadline",
    ),
    Guard(
        "24",
        "models/served/client.py",
        '_seconds(response.headers.get("retry-after")),',
        "None,",
        CLIENT + "test_retry_after_is_heeded_but_not_for_ever",
    ),
    Guard(
        "24",
        "models/served/client.py",
        "given_up.set()  # the others",
        "pass  # the others",
        CLIENT + "test_the_first_fault_that_stays_ends_the_others_without_their_retries",
    ),
    Guard(
        "25",
        "models/served/client.py",
        "_MAY_PASS = {408,",
        "_MAY_PASS = {401, 403, 404, 422, 408,",
        CLIENT + "test_a_refusal_is_not_asked_again",
    ),
    Guard(
        "26",
        "models/served/answers.py",
        'if choice.get("prompt_token_ids") != list(sequence):',
        "if False:",
        SHAPES,
    ),
    Guard(
        "26", "models/served/answers.py", "if len(places) != len(sequence):", "if False:", SHAPES
    ),
    Guard("26", "models/served/answers.py", "if places[0] is not None:", "if False:", SHAPES),
    Guard(
        "26",
        "models/served/answers.py",
        'if [choice.get("index") for choice in found] != list(range(count)):',
        "if False:",
        SHAPES,
    ),
    Guard(
        "26",
        "models/served/answers.py",
        "if header is None:",
        "if False:",
        "fuzz/test_any_server.py::test_any_scores_of_given_ids",
    ),
    Guard(
        "27",
        "models/served/teacher.py",
        "if objective.k > most:",
        "if False:",
        TEACHER + "test_what_a_server_cannot_say_is_refused_at_the_start_with_what_works",
    ),
    Guard(
        "27",
        "models/compatibility.py",
        "if context is None or longest_prompt + max_new_tokens <= context:",
        "if True:",
        TEACHER + "test_a_context_too_short_for_the_run_is_refused",
    ),
    Guard(
        "28",
        "models/served/server.py",
        "if not distance <= fingerprint.tolerance:",
        "if False:",
        TEACHER + "test_a_server_restarted_with_another_model_stops_the_run",
    ),
    Guard(
        "29",
        "models/compatibility.py",
        "if not differing:",
        "if True:",
        "cli/test_errors.py::test_tokenizers_that_differ",
    ),
    Guard(
        "29",
        "models/facts.py",
        "if student.stop_ids == teacher.stop_ids:",
        "if True:",
        "models/test_facts.py::test_other_stop_ids_are_named_on_both_sides",
    ),
    Guard(
        "29",
        "models/facts.py",
        "if teacher.own_prompt or student.template == teacher.template or",
        "if True or",
        "models/test_facts.py::test_a_teacher_that_is_not_asked_for_its_own_template_is_a_warning",
    ),
    Guard(
        "29",
        "models/compatibility.py",
        "if largest >= rows:",
        "if False:",
        "models/test_loading.py::test_ids_beyond_a_heads_rows_are_refused_with_the_side",
    ),
    Guard(
        "29",
        "models/served/teacher.py",
        "if 4 * len(differing) > len(comparable):",
        "if False:",
        TEACHER + "test_a_server_with_another_tokenizer_of_equal_size_is_refused",
    ),
    # --- verifiers ---
    Guard(
        "31",
        "data/worker.py",
        "signal.setitimer(signal.ITIMER_PROF, deadline_s)",
        "signal.setitimer(signal.ITIMER_PROF, 0)",
        "data/test_verify.py::test_processor_time_alone_ends_one_that_computes",
    ),
    Guard(
        "31",
        "data/worker_pool.py",
        "elif worker in active and time.monotonic() >= worker.until:",
        "elif False:",
        "data/test_verify.py::test_one_that_waits_without_computing_is_killed_by_the_clock",
    ),
    # --- data ---
    Guard(
        "33",
        "runs/directory.py",
        'if not line.endswith(b"\\n"):',
        "if False:",
        "diagnose/test_explain.py::"
        "test_a_run_cut_off_in_the_middle_of_a_line_is_read_up_to_the_last_whole_record",
    ),
    Guard(
        "33",
        "runs/ledger.py",
        "        cut_torn_line(path)\n",
        "",
        "data/test_prompts.py::test_a_ledger_survives_a_torn_last_line_and_does_each_unit_once",
    ),
    Guard(
        "33",
        "runs/seals.py",
        "if not whole:",
        "if False:",
        "fuzz/test_any_alignments.py::test_any_file_of_an_alignment_is_whole_or_our_error",
    ),
    Guard(
        "33",
        "data/prompts.py",
        "            part.encode()\n",
        "            pass\n",
        "cli/test_errors.py::test_damaged_rows_are_named",
    ),
    Guard(
        "33",
        "runs/records.py",
        "kind.model_validate(record)",
        "pass",
        "fuzz/test_any_runs.py::test_explain_reads_any_lines",
    ),
    Guard(
        "34",
        "data/prompts.py",
        "if prompt_id in places:",
        "if False:",
        "cli/test_errors.py::test_damaged_rows_are_named",
    ),
    Guard(
        "34",
        "data/sources.py",
        "if not rows:\n",
        "if False:\n",
        "cli/test_errors.py::test_empty_prompts_file",
    ),
    Guard(
        "34",
        "data/prompts.py",
        "return [p for p in prompts if _normalised(p) not in questions]",
        "return list(prompts)",
        "flow/test_training.py::test_held_out_questions_are_in_no_training_prompt",
    ),
    Guard(
        "35",
        "config/reading.py",
        "if key in seen:",
        "if False:",
        "cli/test_errors.py::test_a_key_that_stands_twice",
    ),
    Guard("35", "config/reading.py", "_values(node, {}) > _MOST_VALUES", "False", YAML),
    Guard("35", "config/reading.py", "if len(text) > _MOST_CHARACTERS:", "if False:", YAML),
    Guard("35", "config/reading.py", "elif not known[id(node)]:", "elif False:", YAML),
    Guard(
        "35",
        "config/base.py",
        "allow_inf_nan=False",
        "allow_inf_nan=True",
        YAML,
    ),
    # --- what is shown ---
    Guard(
        "36",
        "reports/page.py",
        "autoescape=True",
        "autoescape=False",
        "reports/test_page.py::test_a_hostile_directory_is_text",
    ),
    Guard(
        "36",
        "reports/text.py",
        'shown = _ESCAPES.sub("", shown.replace("\\r\\n", "\\n"))',
        'shown = shown.replace("\\r\\n", "\\n")',
        "reports/test_text.py::test_terminal_escapes_go_and_unseen_characters_are_spelled_out",
    ),
    Guard(
        "36",
        "models/served/client.py",
        'text = "".join(c if c.isprintable() else " " for c in text)',
        "pass",
        CLIENT + "test_escapes_of_a_hostile_server_do_not_reach_the_terminal",
    ),
    # --- places ---
    Guard(
        "37",
        "runs/directory.py",
        "if folder.is_symlink():",
        "if False:",
        PLACES + "test_a_run_never_replaces_what_a_link_points_to",
    ),
    Guard(
        "37",
        "runs/directory.py",
        "            run.path.chmod(0o700)\n",
        "",
        PLACES + "test_a_run_is_readable_by_its_owner_alone",
    ),
    Guard(
        "37",
        "runs/directory.py",
        'if not folder.is_dir() or not (folder / "config.yaml").exists():',
        "if False:",
        PLACES + "test_overwrite_deletes_runs_alone",
    ),
    Guard(
        "37",
        "paths.py",
        "except (OSError, ValueError, RuntimeError) as fault:",
        "except ZeroDivisionError as fault:",
        PLACES + "test_a_name_that_no_file_system_takes_is_refused_before_anything_loads",
    ),
    Guard(
        "38",
        "data/sources.py",
        'if kind not in (".json", ".csv"):',
        "if False:",
        "data/test_archives.py::test_an_archive_of_prompts_is_refused_under_every_name",
    ),
    # --- secrets ---
    Guard(
        "39",
        "models/served/client.py",
        "text = redacted(text)",
        "pass",
        CLIENT + "test_the_key_comes_from_a_named_variable_and_appears_nowhere_else",
    ),
    Guard(
        "39",
        "cli/__init__.py",
        'print(f"tutelage: {printable(redacted(str(error)))}"',
        'print(f"tutelage: {error}"',
        SECRETS + "test_a_key_in_a_place_that_takes_none_is_refused_and_not_repeated",
    ),
    Guard(
        "39",
        "cli/__init__.py",
        "    redact_tracebacks()\n",
        "",
        SECRETS + "test_a_traceback_shows_no_key",
    ),
    Guard(
        "39",
        "config/server.py",
        'if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):',
        "if False:",
        ADDRESS,
    ),
    Guard(
        "39",
        "models/served/client.py",
        'if not (self._key.isascii() and self._key.isprintable() and " " not in self._key):',
        "if False:",
        SECRETS + "test_a_key_that_no_header_takes_is_refused_without_being_shown",
    ),
    Guard(
        "39",
        "models/served/client.py",
        "follow_redirects=False",
        "follow_redirects=True",
        CLIENT + "test_redirects_are_never_followed",
    ),
    Guard("39", "config/server.py", "if _is_link_local(host):", "if False:", ADDRESS),
    Guard(
        "39",
        "session.py",
        'if not server.is_loopback and "http:" in server.address:',
        "if False:",
        "servers/test_doctor.py::test_plain_http_to_another_machine_is_told_by_doctor_and_run",
    ),
    Guard(
        "39",
        "diagnose/machine.py",
        "fit = Version(found) >= Version(floor)",
        "fit = True",
        "servers/test_doctor.py::test_each_floor_is_kept",
    ),
    # --- hostile models ---
    Guard(
        "40",
        "models/checkpoints.py",
        "if weights and not any(folder.glob(_WEIGHTS)):",
        "if False:",
        HOSTILE + "test_pickled_weights_are_refused_unopened",
    ),
    Guard(
        "40",
        "models/loading.py",
        "                use_safetensors=True,\n",
        "",
        HOSTILE + "test_a_damaged_index_never_leads_to_a_pickle",
    ),
    Guard(
        "40",
        "models/checkpoints.py",
        "    if strange:\n",
        "    if False:\n",
        HOSTILE + "test_a_damaged_index_never_leads_to_a_pickle",
    ),
    Guard(
        "40",
        "models/loading.py",
        "                trust_remote_code=False,\n                output_loading_info=True,",
        "                trust_remote_code=True,\n                output_loading_info=True,",
        HOSTILE + "test_code_that_a_folder_brings_never_runs",
    ),
    Guard(
        "40",
        "models/loading.py",
        "folder.tokenizer, local_files_only=True, trust_remote_code=False",
        "folder.tokenizer, local_files_only=True, trust_remote_code=True",
        HOSTILE + "test_code_that_a_folder_brings_never_runs",
    ),
    Guard(
        "40",
        "data/template_worker.py",
        "    limit_memory(MEMORY)\n",
        "",
        HOSTILE + "test_a_template_that_grows_is_stopped_at_its_memory",
    ),
    Guard(
        "40",
        "data/template_worker.py",
        "transformers.render_jinja_template(",
        "(lambda conversations, chat_template, **rest: ([__import__('jinja2').Environment()"
        ".from_string(chat_template).render(messages=c, **rest) for c in conversations], None))(",
        HOSTILE + "test_a_template_cannot_leave_its_sandbox",
    ),
)


def main() -> int:
    """Try the guards of the cases named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help="numbers; all without any")
    parser.add_argument("--list", action="store_true", help="only look whether every text is there")
    chosen = parser.parse_args()
    guards = [g for g in GUARDS if not chosen.cases or g.case in chosen.cases]
    stale = [g for g in guards if _source(ROOT, g).read_text().count(g.text) != 1]
    for guard in stale:
        count = _source(ROOT, guard).read_text().count(guard.text)
        print(f"stale     {guard.case:>3}  {guard.file}: found {count} times: {guard.text!r:.70}")
    if stale or chosen.list:
        return len(stale)
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="mutations-") as scratch:
        tree = Path(scratch) / "tree"
        tree.mkdir()
        shutil.copy(ROOT / "pyproject.toml", tree)
        for folder in ("src", "tests"):
            junk = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / folder, tree / folder, ignore=junk)
        tests = sorted({guard.test for guard in guards})
        untouched, told = _run(tree, *tests)
        if untouched != 0:
            print(f"the tests fail without any change (pytest ends with {untouched}):\n{told}")
            return 1
        for guard in guards:
            source = _source(tree, guard)
            whole = source.read_text()
            changed = whole.replace(guard.text, guard.instead)
            source.write_text(changed)
            started = time.monotonic()
            code, _ = _run(tree, guard.test, "-x", "--timeout=200")
            source.write_text(whole)
            word = {0: "SURVIVED", 1: "noticed"}.get(code, f"pytest {code}")
            survivors += code != 1
            took = time.monotonic() - started
            print(
                f"{word:9} {guard.case:>3}  {guard.file}: {guard.text.strip()!r:.70} ({took:.0f} s)"
            )
            sys.stdout.flush()
    print(f"{len(guards) - survivors} of {len(guards)} removed guards were noticed")
    return int(survivors > 0)


def _source(tree: Path, guard: Guard) -> Path:
    return tree / "src" / "tutelage" / guard.file


def _run(tree: Path, *words: str) -> tuple[int, str]:
    """How pytest ends, and its last words."""
    paths = [f"tests/{word}" if "::" in word else word for word in words]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout[-3000:]


if __name__ == "__main__":
    sys.exit(main())

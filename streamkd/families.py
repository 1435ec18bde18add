"""Every metric family, declared once: what it is, what it means, and the names of its labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

FamilyType = Literal["counter", "gauge", "histogram"]
FAST = (0.0005, 0.002, 0.005, 0.02, 0.05, 0.2, 1.0)
SLOW = (0.01, 0.05, 0.2, 1.0, 5.0, 20.0)
TRIALS = (1.0, 10.0, 60.0, 600.0, 3600.0)
SERVED = "what was served: of the newest records (served), of all (served_ever)."
DELAYS = (1.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0, 604_800.0)
ROWS = (1, 4, 16, 64, 256, 1024)


@dataclass(frozen=True)
class Family:
    """One metric family: its type, what it means, and the names of its labels."""

    type: FamilyType
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(help: str, *labels: str) -> Family:
    return Family("counter", help, labels)


def _gauge(help: str, *labels: str) -> Family:
    return Family("gauge", help, labels)


def _histogram(help: str, buckets: tuple[float, ...], *labels: str) -> Family:
    return Family("histogram", help, labels, buckets)


FAMILIES: Mapping[str, Family] = {
    "build_info": _gauge("Always 1; the labels say what runs.", "version", "python", "torch", "platform"),
    "ready": _gauge("1 when every endpoint of the configuration accepts connections."),
    "tenants": _gauge("Tenants of this server, by how they stand.", "state"),
    "tenant_ready": _gauge("1 while nothing is wrong with a tenant's configuration or state.", "tenant"),
    "tenant_lag_records": _gauge("Records of a tenant that are there and not yet trained.", "tenant"),
    "tenant_records_trained": _gauge("Records of a tenant that are trained, as far as it has said.", "tenant"),
    "tenant_turns_total": _counter("Turns that a tenant has had with a learner.", "tenant"),
    "tenant_failures_total": _counter("Turns of a tenant in which its learner died or could not go on.", "tenant"),
    "tenant_wait_seconds": _histogram("Time from a tenant's asking for a turn to the turn.", SLOW),
    "tenant_desks": _gauge("Tenants whose model is held for predictions."),
    "process_up": _gauge("1 while the child process runs.", "process"),
    "process_restarts_total": _counter("Child processes started again after they died.", "process"),
    "process_hangs_total": _counter("Child processes killed because they were silent for too long.", "process"),
    "process_heartbeat_age_seconds": _gauge("Time since the child's main loop was last known to go on.", "process"),
    "telemetry_dropped_total": _counter("Statuses and metrics that could not be told; nothing else is lost.", "kind"),
    "source_records_total": _counter("Records accepted from the source.", "source"),
    "source_bytes_total": _counter("Bytes accepted from the source.", "source"),
    "source_errors_total": _counter("Failures to read the source or to take a batch.", "source", "reason"),
    "source_lag_records": _gauge("Records that are there and not yet trained.", "source"),
    "source_lag_messages": _gauge("Messages that a broker has and the log not yet.", "source", "partition"),
    "source_lost_messages_total": _counter("Messages that a broker had no more when they were to be read.", "source"),
    "source_files": _gauge("Files of a watched place, by how they stand.", "source", "state"),
    "source_paused": _gauge("1 while the source is held back.", "source"),
    "source_watermark_timestamp_seconds": _gauge(
        "Event time of the newest record; by event time the watermark: no sender is expected to bring any before it.",
        "source",
    ),
    "records_rejected_total": _counter("Records refused, by reason.", "source", "reason"),
    "records_unlabelled_total": _counter("Records that came without label, and were not refused for it.", "source"),
    "records_skipped_total": _counter("Records passed over, as a rollback has said.", "source"),
    "gaps_filled_total": _counter("Gaps in records to be learned that were filled, by column.", "column"),
    "dead_letter_records_total": _counter("Records written to the dead letters.", "source", "reason"),
    "records_duplicate_total": _counter("Records that a producer sent again.", "source"),
    "records_repeated_total": _counter("Records whose inputs had come before, as far as that is remembered.", "source"),
    "records_repeated_ratio": _gauge("Part of the newest records whose inputs had come before.", "source"),
    "source_pass": _gauge("Pass (epoch) over its records of a source that repeats them, from 1 on.", "source"),
    "queue_records": _gauge("Records waiting in the queue.", "queue"),
    "queue_capacity_records": _gauge("Records that the queue can hold.", "queue"),
    "order_held_records": _gauge("Records that wait for their turn by event time."),
    "order_held_bytes": _gauge("Bytes of these."),
    "order_senders": _gauge("Senders of event times: waited for (active), or silent for too long (idle).", "state"),
    "order_exceptions_total": _counter(
        "Records that came when their place in the order of event times was gone (train, drop, dead-letter: what "
        "became of them), that have no event time (untimed), or went before their turn as too many were held (full).",
        "kind",
    ),
    "train_steps_total": _counter("Optimiser steps."),
    "train_samples_total": _counter("Records taken in steps, held-out ones among them; replay not counted."),
    "train_batch_records": _gauge("Records that a batch has now."),
    "train_rehearsals": _gauge("Steps after each batch now, in which the student learns what is remembered."),
    "train_pace_changes_total": _counter("Times that batches or the steps after them became more or fewer."),
    "train_steps_skipped_total": _counter("Steps that were left out.", "reason"),
    "train_step_duration_seconds": _histogram("Duration of a step.", FAST),
    "train_loss": _gauge("Loss of the last step.", "loss"),
    "train_learning_rate": _gauge("Learning rate in use.", "group"),
    "train_last_step_timestamp_seconds": _gauge("When the last step ended."),
    "tasks_total": _counter("Tasks begun."),
    "task_boundaries_total": _counter("Boundaries between tasks, by detector.", "detector"),
    "eval_accuracy_ratio": _gauge(
        "Of the newest records, each before it was learned: by the version served then (served), by the network in "
        "training (student), or where its label came later as it was answered then (delayed). Of the newest model on "
        "records never learned: mean over the tasks (holdout).",
        "window",
    ),
    "eval_majority_ratio": _gauge(
        "Part of the records with the most frequent label: always saying it has it.", "window"
    ),
    "eval_balanced_accuracy_ratio": _gauge(f"Recall, mean over the classes, of {SERVED}", "window"),
    "eval_macro_f1_ratio": _gauge(f"F1, mean over the classes, of {SERVED}", "window"),
    "eval_auc_ratio": _gauge(f"Area under the ROC curve, a class against the rest, mean, of {SERVED}", "window"),
    "eval_kappa": _gauge(
        "Accuracy of what was served beside a simple answer's, 0 as good, 1 perfect: chance (cohen), the label before "
        "(temporal), the most frequent label (m); windows as above.",
        "kappa",
        "window",
    ),
    "eval_log_loss_nats": _gauge(f"Mean -log p(label) of {SERVED}", "window"),
    "eval_calibration_error_ratio": _gauge(f"Expected calibration error of {SERVED}", "window"),
    "eval_forgetting_ratio": _gauge("What each task had at best on held-out records minus now, mean.", "window"),
    "avalanche_metric": _gauge("Last value of an Avalanche metric, by Avalanche's name for it.", "metric"),
    "gate_weight_ratio": _gauge(
        "Mean gate weight over the rows of the last step, by teacher; `hard` is the label's own.", "teacher"
    ),
    "gate_policy_ratio": _gauge(
        "Weight of a policy in a gate that mixes several: the posterior of the hedge.", "policy"
    ),
    "label_noise_ratio": _gauge(
        "Estimated label noise: part of the labels that are wrong; NaN where it cannot be told, ignored below 0.05."
    ),
    "producer_noise_ratio": _gauge(
        "Part of a producer's labels that are wrong beyond what is of all; withheld from 0.05 on.", "producer"
    ),
    "gate_adaptations_total": _counter("Meta-adaptations of the gate."),
    "gate_adaptation_faults_total": _counter(
        "Meta-adaptations that were left out (memory, not_finite) or taken by finite differences for once (forward).",
        "reason",
    ),
    "gate_forward_mode": _gauge("1, or 0 where an operator has no forward mode and finite differences are taken."),
    "gate_adaptation_duration_seconds": _histogram("Duration of a meta-adaptation.", SLOW),
    "gate_outer_loss": _gauge("Outer loss of the last meta-adaptation."),
    "teachers": _gauge("Teachers in the pool."),
    "teacher_marginal_gain_ratio": _gauge(
        "Held-out probability of the label that the pool would lose without the teacher.", "teacher"
    ),
    "teacher_requests_total": _counter("Batches that the teacher was asked about.", "teacher"),
    "teacher_failures_total": _counter("Batches that the teacher failed on.", "teacher", "reason"),
    "teacher_duration_seconds": _histogram(
        "Mean duration of a teacher's answers between two reports.", SLOW, "teacher"
    ),
    "teacher_cache_hits_total": _counter("Samples answered by logits that are kept in the memory.", "teacher"),
    "predict_requests_total": _counter("Prediction requests.", "protocol"),
    "predict_failures_total": _counter("Prediction requests without a prediction.", "protocol", "reason"),
    "predict_records_rejected_total": _counter("Records answered with an error beside others.", "protocol"),
    "predict_duration_seconds": _histogram("Duration of a prediction request.", FAST, "protocol"),
    "predict_queue_duration_seconds": _histogram("Wait before the forward pass.", FAST),
    "predict_batch_size": _histogram("Rows of a forward pass.", ROWS),
    "predict_in_flight": _gauge("Prediction requests being answered.", "protocol"),
    "model_version": _gauge("Version that answers."),
    "model_pinned": _gauge("1 while a rollback is pinned, so that newer versions are not served."),
    "model_lag_records": _gauge("Records trained since the served version was cut."),
    "model_published_timestamp_seconds": _gauge("When the served version was published."),
    "model_swaps_total": _counter("Versions swapped in."),
    "model_swaps_rejected_total": _counter("Versions not published or not swapped in.", "reason"),
    "model_swap_duration_seconds": _histogram("Time to load and swap a version.", SLOW),
    "predictions_kept_total": _counter("Predictions handed over to be kept for their label."),
    "predictions_not_kept_total": _counter("Predictions that are not kept, since too many wait to be.", "reason"),
    "labels_joined_total": _counter("Labels that came later and made a record of their prediction."),
    "labels_unmatched_total": _counter("Labels that made no record.", "reason"),
    "labels_pending": _gauge("Predictions that are kept and have no label yet."),
    "label_delay_seconds": _histogram("From a prediction to the record that its label made.", DELAYS),
    "checkpoints_total": _counter("Checkpoints committed."),
    "checkpoint_failures_total": _counter("Checkpoints that failed.", "reason"),
    "checkpoint_duration_seconds": _histogram("Duration of a checkpoint.", SLOW),
    "checkpoint_size_bytes": _gauge("Bytes of the last checkpoint."),
    "checkpoint_last_success_timestamp_seconds": _gauge("When the last checkpoint was committed."),
    "plugin_enabled": _gauge("1 for a plugin that is on, 0 for one that failed.", "plugin"),
    "plugin_errors_total": _counter("Errors of a plugin, but for teachers'.", "plugin", "hook"),
    "plugin_seconds_total": _counter("Seconds in a plugin's own code, but for teachers'.", "plugin", "kind"),
    "auth_failures_total": _counter("Requests refused for their token.", "protocol"),
    "tune_trials": _gauge("Trials of a search, by state.", "state"),
    "tune_best_objective": _gauge("Best figure of a finished trial.", "objective"),
    "tune_trial_seconds": _histogram("Duration of a trial that is over.", TRIALS),
}

//! The stories. Each ends with a check of the invariants.

use kage_core::session::SessionStateKind;

pub(super) use super::admission::{
    a_join_token_lets_as_many_agents_in_as_it_is_good_for, a_join_token_lets_one_agent_in_in_time,
    a_revoked_agent_stays_out, nobody_joins_with_a_token_that_was_taken_back,
    tokens_of_people_are_kept_until_they_are_taken_back,
};
use super::fixture::{activity, appended, at, claimed, committed, create, spec, started, task_id, two_agents};
use super::invariants::{Seen, check};
use crate::store::conformance::followed::Followed as _;
use crate::store::{QueuedJob, Store, TaskView};

mod base_verdicts;
mod baseline;
mod calls;
mod checkpoints;
mod containment;
mod drops;
mod events;
mod feed;
mod handover;
mod leases;
mod lists;
mod outcomes;
mod requests;
mod saving;
mod selections;
mod sending;
mod turns;
mod worked;

pub(super) use base_verdicts::{
    a_verdict_on_a_base_is_kept_for_a_while, a_verdict_on_a_base_is_of_one_check_on_one_machine,
    a_verdict_on_a_base_is_taken_by_later_tasks, what_a_revoked_agent_said_of_a_base_is_not_taken,
    what_decides_nothing_about_a_base_is_not_kept,
};
pub(super) use baseline::{
    a_base_that_fails_is_known_also_after_the_end, a_base_that_fails_says_nothing_about_a_result,
    a_check_of_the_base_ends_with_its_task, a_check_of_the_base_is_repeated_within_limits,
    the_base_is_checked_beside_the_sessions,
};
pub(super) use calls::{
    a_call_is_booked_once_whichever_way_it_is_told, a_cancelled_stream_holds_nothing_back_after_its_attempt,
    a_program_that_reports_too_much_is_stopped, nobody_calls_without_authority, reserve,
    sessions_side_by_side_never_hold_more_than_the_budget, tokens_of_one_name_share_a_persons_budget,
    what_a_person_spent_stays_spent_when_tasks_go, without_a_budget_nothing_is_held_back,
};
pub(super) use checkpoints::{
    a_checkpoint_is_asked_for_once_per_request, a_crash_amid_edits_goes_back_to_between_two_steps,
    a_lost_session_goes_on_from_its_last_checkpoint, a_rework_that_ends_badly_is_rejected_still,
    a_session_goes_back_when_somebody_asks, only_work_on_a_session_has_checkpoints_and_results,
    rejected_work_goes_on_from_its_own_checkpoint, taken,
};
pub(super) use containment::{
    a_demand_stays_with_every_job_of_its_task, the_lowest_tier_of_its_attempts_is_a_sessions,
    the_tier_of_an_attempt_stands_with_its_verdict, what_ran_in_a_lower_tier_is_no_verdict_on_a_base,
};
pub(super) use drops::{
    a_dropped_task_is_gone_and_nothing_else, a_repository_goes_when_no_task_is_of_it, what_is_not_over_is_not_dropped,
};
pub(super) use events::{
    a_batch_that_contradicts_itself_is_refused, a_gap_is_named_and_a_repeat_is_acknowledged, a_stale_token_is_refused,
    another_agent_is_refused, nothing_is_taken_after_the_end, usage_and_activity_add_up,
    usage_keeps_the_price_of_when_it_was_accepted,
};
pub(super) use feed::{
    commits_are_told_in_order_and_before_their_answers, rows_are_told_in_their_new_form,
    what_changed_nothing_is_not_told,
};
pub(super) use handover::{
    a_checkpoint_follows_one_that_is_there, an_adapter_that_nobody_has_is_passed_over,
    another_adapter_takes_over_the_files,
};
pub(super) use leases::{
    a_new_start_of_an_agent_ends_the_older_ones_attempts, an_agent_that_does_not_act_loses_its_attempt,
    an_attempt_starts_once_and_for_the_present_start_only, an_expired_lease_ends_unless_it_was_renewed,
    leases_are_renewed_for_their_holder_only,
};
pub(super) use lists::{
    a_cordon_outlives_every_start_of_its_agent, agents_are_remembered_with_their_drain,
    contexts_count_puts_uses_and_sends, pages_are_newest_first_and_stay_put, pages_are_of_what_a_filter_takes,
    tasks_are_found_by_a_prefix,
};
pub(super) use outcomes::{
    a_rejected_result_fails_the_task, a_task_goes_from_queued_to_verified, a_task_without_verify_succeeds_by_a_claim,
    a_used_up_limit_holds_the_session_until_its_reset, an_errored_verdict_is_repeated_elsewhere_then_left_open,
    cancelling_ends_what_waits_and_stops_what_runs,
};
pub(super) use requests::{
    a_refused_command_leaves_nothing_behind, a_request_can_be_repeated_for_seven_days,
    a_request_id_is_good_for_one_payload, a_task_that_nobody_can_run_is_refused_unless_it_is_stored,
    creating_twice_is_creating_once,
};
pub(super) use saving::{
    an_unfinished_result_is_verified_when_asked, unclaimed_work_is_saved_before_the_end,
    what_cannot_be_saved_is_told_and_holds_nothing_up, without_a_command_nothing_is_verified,
};
pub(super) use selections::a_result_is_selected_until_it_is_none_any_more;
pub(super) use sending::{
    a_message_takes_the_place_of_a_verify_that_waits, a_question_is_answered_while_it_waits,
    a_session_that_is_over_goes_on_with_what_it_is_told, another_adapter_goes_on_beside_from_the_same_files,
    what_is_said_meanwhile_comes_before_verify,
};
pub(super) use turns::{
    a_ladder_ends_where_nothing_was_rejected, a_ladder_goes_up_when_verify_rejects,
    enough_verified_sessions_stop_the_others, spared_work_is_saved,
};
pub(super) use worked::the_time_in_which_nobody_ran_is_not_counted;

const CHECKED: Option<&str> = Some("true");

/// Two agents, and a task whose sessions wait.
async fn begin(store: &Store, sessions: usize, verify: Option<&str>) -> Vec<QueuedJob> {
    two_agents(store).await;
    let created = store.followed(create(1, spec(sessions, verify), at(1))).await;
    created.queued
}

async fn view(store: &Store) -> TaskView {
    store.task(task_id(1)).await.unwrap().unwrap()
}

async fn state(store: &Store, session: usize) -> SessionStateKind {
    view(store).await.sessions[session].state.kind()
}

async fn end(store: &Store) {
    check(store, &Seen::default()).await;
}

/// Session `s0` has claimed: its verify job.
async fn verify_job(store: &Store) -> QueuedJob {
    let jobs = begin(store, 1, CHECKED).await;
    started(store, &jobs[0], 1, 1, 1).await;
    let changes = appended(store, 1, 1, vec![activity(1), committed(2), claimed(3)]).await;
    assert_eq!(changes.ended.len(), 1);
    changes.queued.into_iter().next().unwrap()
}

//! The requirements for every engine: one set of stories that runs on each, and random command
//! sequences whose outcomes and answers are compared with the model's.

use tempfile::TempDir;

use super::Store;
use super::recent::Recent;

mod admission;
mod durable;
mod faults;
mod fixture;
mod followed;
mod invariants;
mod measured;
mod pinned;
mod played;
mod random;
mod stories;

/// A store of one engine, and what it lives in.
struct Opened {
    store: Store,
    _dir: Option<TempDir>,
}

fn sqlite() -> Opened {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("kage.db")).unwrap();
    Opened { store, _dir: Some(dir) }
}

/// One that keeps nothing in memory, so that every answer is read from its file.
fn forgetful() -> Opened {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(&dir.path().join("kage.db"), Recent::nothing).unwrap();
    Opened { store, _dir: Some(dir) }
}

fn memory() -> Opened {
    Opened {
        store: Store::in_memory(),
        _dir: None,
    }
}

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

/// Makes each story a test of each engine.
macro_rules! conformance {
    ($($story:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[test]
            fn $story() {
                let opened = super::sqlite();
                super::run(super::stories::$story(opened.store.clone()));
            })*
        }

        mod on_forgetful_sqlite {
            $(#[test]
            fn $story() {
                let opened = super::forgetful();
                super::run(super::stories::$story(opened.store.clone()));
            })*
        }

        mod in_memory {
            $(#[test]
            fn $story() {
                let opened = super::memory();
                super::run(super::stories::$story(opened.store.clone()));
            })*
        }
    };
}

conformance!(
    a_task_goes_from_queued_to_verified,
    a_rejected_result_fails_the_task,
    an_errored_verdict_is_repeated_elsewhere_then_left_open,
    a_task_without_verify_succeeds_by_a_claim,
    a_used_up_limit_holds_the_session_until_its_reset,
    creating_twice_is_creating_once,
    a_request_id_is_good_for_one_payload,
    a_request_can_be_repeated_for_seven_days,
    a_refused_command_leaves_nothing_behind,
    a_stale_token_is_refused,
    another_agent_is_refused,
    a_gap_is_named_and_a_repeat_is_acknowledged,
    nothing_is_taken_after_the_end,
    a_batch_that_contradicts_itself_is_refused,
    cancelling_ends_what_waits_and_stops_what_runs,
    a_new_start_of_an_agent_ends_the_older_ones_attempts,
    an_attempt_starts_once_and_for_the_present_start_only,
    leases_are_renewed_for_their_holder_only,
    an_expired_lease_ends_unless_it_was_renewed,
    an_agent_that_does_not_act_loses_its_attempt,
    the_time_in_which_nobody_ran_is_not_counted,
    usage_and_activity_add_up,
    without_a_budget_nothing_is_held_back,
    a_call_is_booked_once_whichever_way_it_is_told,
    a_cancelled_stream_holds_nothing_back_after_its_attempt,
    sessions_side_by_side_never_hold_more_than_the_budget,
    tokens_of_one_name_share_a_persons_budget,
    what_a_person_spent_stays_spent_when_tasks_go,
    a_program_that_reports_too_much_is_stopped,
    nobody_calls_without_authority,
    usage_keeps_the_price_of_when_it_was_accepted,
    pages_are_newest_first_and_stay_put,
    pages_are_of_what_a_filter_takes,
    tasks_are_found_by_a_prefix,
    agents_are_remembered_with_their_drain,
    a_cordon_outlives_every_start_of_its_agent,
    a_task_that_nobody_can_run_is_refused_unless_it_is_stored,
    contexts_count_puts_uses_and_sends,
    a_join_token_lets_one_agent_in_in_time,
    a_join_token_lets_as_many_agents_in_as_it_is_good_for,
    nobody_joins_with_a_token_that_was_taken_back,
    a_revoked_agent_stays_out,
    tokens_of_people_are_kept_until_they_are_taken_back,
    a_lost_session_goes_on_from_its_last_checkpoint,
    a_crash_amid_edits_goes_back_to_between_two_steps,
    rejected_work_goes_on_from_its_own_checkpoint,
    a_rework_that_ends_badly_is_rejected_still,
    a_session_goes_back_when_somebody_asks,
    a_checkpoint_is_asked_for_once_per_request,
    only_work_on_a_session_has_checkpoints_and_results,
    the_base_is_checked_beside_the_sessions,
    a_base_that_fails_is_known_also_after_the_end,
    a_base_that_fails_says_nothing_about_a_result,
    a_check_of_the_base_is_repeated_within_limits,
    a_check_of_the_base_ends_with_its_task,
    a_verdict_on_a_base_is_taken_by_later_tasks,
    a_verdict_on_a_base_is_of_one_check_on_one_machine,
    a_verdict_on_a_base_is_kept_for_a_while,
    what_decides_nothing_about_a_base_is_not_kept,
    what_a_revoked_agent_said_of_a_base_is_not_taken,
    what_ran_in_a_lower_tier_is_no_verdict_on_a_base,
    the_tier_of_an_attempt_stands_with_its_verdict,
    the_lowest_tier_of_its_attempts_is_a_sessions,
    a_demand_stays_with_every_job_of_its_task,
    another_adapter_takes_over_the_files,
    a_dropped_task_is_gone_and_nothing_else,
    what_is_not_over_is_not_dropped,
    a_repository_goes_when_no_task_is_of_it,
    an_adapter_that_nobody_has_is_passed_over,
    a_checkpoint_follows_one_that_is_there,
    a_result_is_selected_until_it_is_none_any_more,
    unclaimed_work_is_saved_before_the_end,
    what_cannot_be_saved_is_told_and_holds_nothing_up,
    a_session_that_is_over_goes_on_with_what_it_is_told,
    what_is_said_meanwhile_comes_before_verify,
    a_question_is_answered_while_it_waits,
    a_message_takes_the_place_of_a_verify_that_waits,
    another_adapter_goes_on_beside_from_the_same_files,
    an_unfinished_result_is_verified_when_asked,
    enough_verified_sessions_stop_the_others,
    spared_work_is_saved,
    a_ladder_goes_up_when_verify_rejects,
    a_ladder_ends_where_nothing_was_rejected,
    without_a_command_nothing_is_verified,
    commits_are_told_in_order_and_before_their_answers,
    what_changed_nothing_is_not_told,
    rows_are_told_in_their_new_form,
);

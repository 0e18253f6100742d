//! What the datastore does to a running overlay: two daemons and their containers in network
//! namespaces, a real etcd on a third host, and a ping between the containers that never
//! stops and loses nothing.
//!
//! They wait more than they do, each in namespaces of its own: so many run at a time.

use crate::support::nodes::together;

#[path = "../support/mod.rs"]
mod support;

mod auth;
mod contents;
mod lab;
mod memory;
mod proxy;
mod quorum;
mod sleep;
mod tls;

#[test]
fn what_etcd_says_of_who_may_ask_and_how_it_is_reached() {
    together(&[
        (
            "tokens_expire_and_passwords_change_without_loss",
            auth::tokens_expire_and_passwords_change_without_loss,
        ),
        (
            "a_bad_way_to_etcd_costs_no_packet_and_no_lease",
            proxy::a_bad_way_to_etcd_costs_no_packet_and_no_lease,
        ),
        (
            "certificates_are_replaced_and_bad_ones_named_without_loss",
            tls::certificates_are_replaced_and_bad_ones_named_without_loss,
        ),
    ]);
}

#[test]
fn what_becomes_of_the_records_and_of_who_remembers_them() {
    together(&[
        (
            "a_wiped_store_is_filled_again_and_no_packet_is_lost",
            contents::a_wiped_store_is_filled_again_and_no_packet_is_lost,
        ),
        (
            "a_lease_that_went_while_history_was_compacted_is_missed_by_nobody",
            contents::a_lease_that_went_while_history_was_compacted_is_missed_by_nobody,
        ),
        (
            "ten_thousand_rubbish_records_cost_no_packet_and_little_memory",
            contents::ten_thousand_rubbish_records_cost_no_packet_and_little_memory,
        ),
        (
            "a_record_that_is_deleted_or_taken_is_told_and_nothing_moves",
            contents::a_record_that_is_deleted_or_taken_is_told_and_nothing_moves,
        ),
        (
            "a_record_that_is_free_again_is_taken_back",
            contents::a_record_that_is_free_again_is_taken_back,
        ),
        (
            "a_store_that_is_away_for_longer_than_leases_live_costs_nothing",
            contents::a_store_that_is_away_for_longer_than_leases_live_costs_nothing,
        ),
        (
            "a_daemon_killed_while_etcd_is_away_forwards_again_and_follows_it_later",
            memory::a_daemon_killed_while_etcd_is_away_forwards_again_and_follows_it_later,
        ),
        (
            "what_is_remembered_outlives_a_store_that_comes_back_empty",
            memory::what_is_remembered_outlives_a_store_that_comes_back_empty,
        ),
    ]);
}

#[test]
fn members_sleepers_and_twins() {
    together(&[
        (
            "a_cluster_loses_members_and_its_quorum_and_no_packet_is_lost",
            quorum::a_cluster_loses_members_and_its_quorum_and_no_packet_is_lost,
        ),
        (
            "a_daemon_that_slept_past_its_lease_takes_the_same_subnet_again",
            sleep::a_daemon_that_slept_past_its_lease_takes_the_same_subnet_again,
        ),
        (
            "of_two_hosts_with_one_address_the_first_stays",
            sleep::of_two_hosts_with_one_address_the_first_stays,
        ),
    ]);
}

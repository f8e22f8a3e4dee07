"""The security checklist, line by line, and the tests that hold each line; a line without one fails here.

S: raw requests (1 the 42 inputs, 2 clients that wait, 3 bodies, 4 what only a front can see). N: names, references,
ranges, methods. R: where an upstream may not send us. C: credentials. K: poisoning. D: exhaustion. F: fuzzing (1 paths,
2 ranges, 3 challenges, 4 manifests, 5 locations, 6 settings and keychains, 7 frames between workers, 8 raw HTTP, 9 the
upstream, 10 the bucket, 11 the endpoints).
"""

import ast
from functools import cache

import pytest

from tests.support.paths import ROOT

TESTS = ROOT / "tests"
LENGTHS = {"S": 4, "N": 10, "R": 7, "C": 9, "K": 5, "D": 10, "F": 11}

READERS = ["fuzz/test_targets.py::test_readers_hold_against_anything"]

CHECKLIST = {
    "S1": ["security/test_raw_requests.py::test_s1_raw_inputs"],
    "S2": ["security/test_raw_requests.py::test_s2_clients_that_wait_are_cut"],
    "S3": ["security/test_raw_requests.py::test_s3_the_body_of_a_post_is_not_waited_for"],
    "S4": ["security/test_raw_requests.py::test_s4_what_dockyard_cannot_see_is_settled_by_the_front"],
    "N1": ["security/test_names.py::test_n1_bad_names", "protocol/test_names.py::test_names_outside_the_grammar"],
    "N2": ["security/test_names.py::test_n2_bad_references"],
    "N3": [
        "security/test_names.py::test_n3_names_made_of_the_words_of_the_protocol",
        "protocol/test_names.py::test_a_repository_named_like_endpoints",
    ],
    "N4": [
        "security/test_names.py::test_n4_a_neighbour_of_a_prefix_does_not_get_its_login",
        "protocol/test_routing.py::test_the_longest_prefix_by_component",
    ],
    "N5": ["security/test_names.py::test_n5_one_path_at_two_upstreams"],
    "N6": [
        "security/test_names.py::test_n6_an_ns_that_is_given_twice",
        "protocol/test_routing.py::test_an_unknown_namespace_is_rejected",
        "protocol/test_routing.py::test_a_listening_namespace_gets_no_connection",
    ],
    "N7": [
        "security/test_names.py::test_n7_ranges",
        "protocol/test_ranges.py::test_ranges_of_a_cold_and_a_warm_blob",
        "protocol/test_ranges.py::test_too_many_ranges_are_a_bad_request",
    ],
    "N8": ["security/test_names.py::test_n8_head_is_get_without_a_body"],
    "N9": [
        "protocol/test_routing.py::test_writes_are_not_allowed",
        "protocol/test_routing.py::test_an_override_header_does_not_write",
        "protocol/test_routing.py::test_an_upload_is_rejected_with_its_body_unread",
    ],
    "N10": ["security/test_names.py::test_n10_accept_changes_nothing"],
    "R1": [
        "security/test_ssrf.py::test_r1_redirects",
        "protocol/test_redirects.py::test_a_public_registry_may_not_redirect_to_a_private_address",
    ],
    "R2": [
        "security/test_ssrf.py::test_r2_names_that_are_bound_anew",
        "security/test_ssrf.py::test_r2_a_name_with_public_and_private_addresses",
    ],
    "R3": [
        "security/test_ssrf.py::test_r3_realms",
        "security/test_ssrf.py::test_r3_realms_of_strangers",
        "unit/oci/test_challenge.py::test_any_other_realm_gets_no_credentials",
    ],
    "R4": ["security/test_ssrf.py::test_r4_urls_in_a_manifest_are_not_followed"],
    "R5": [
        "security/test_ssrf.py::test_r5_a_private_registry_points_to_its_neighbours_only",
        "protocol/test_redirects.py::test_a_trusted_private_address_is_followed",
    ],
    "R6": ["security/test_ssrf.py::test_r6_proxies_of_the_environment_are_not_used"],
    "R7": [
        "protocol/test_redirects.py::test_invalid_redirects",
        "protocol/test_redirects.py::test_eleven_hops_are_too_many",
        "protocol/test_redirects.py::test_relative_locations",
        "unit/upstream/test_urls.py::test_a_location_is_resolved_against_where_we_are",
        "unit/upstream/test_urls.py::test_a_location_that_leads_astray_is_refused",
    ],
    "C1": [
        "security/test_credentials.py::test_c1_c3_credentials_do_not_follow_a_redirect",
        "protocol/test_redirects.py::test_credentials_stay_with_the_registry",
    ],
    "C2": ["security/test_credentials.py::test_c2_a_redirect_back_to_the_registry"],
    "C3": [
        "security/test_credentials.py::test_c1_c3_credentials_do_not_follow_a_redirect",
        "security/test_credentials.py::test_c3_a_clients_own_login_is_no_part_of_any_key",
    ],
    "C4": [
        "security/test_credentials.py::test_c4_the_scope_is_our_own",
        "security/test_credentials.py::test_c4_basic_is_not_sent_to_a_realm",
        "protocol/test_auth.py::test_challenges_of_every_shape",
        "protocol/test_keychain.py::test_basic_credentials_are_not_sent_in_plain_text",
        "unit/oci/test_challenge.py::test_a_hostile_header_costs_little_time",
    ],
    "C5": [
        "security/test_credentials.py::test_c5_a_token_without_a_sensible_life",
        "security/test_credentials.py::test_c5_bodies_that_are_no_token",
        "unit/upstream/test_tokens.py::test_a_token_is_kept_for_two_thirds_of_its_life",
    ],
    "C6": [
        "security/test_credentials.py::test_c6_an_upstream_that_tells_what_it_was_sent",
        "security/test_credentials.py::test_c6_connections_that_fail",
        "protocol/test_keychain.py::test_a_failing_helper_is_an_error_not_anonymous_access",
    ],
    "C7": [
        "protocol/test_keychain.py::test_a_failing_helper_is_an_error_not_anonymous_access",
        "protocol/test_keychain.py::test_a_cached_tag_outlives_its_helper",
        "protocol/test_keychain.py::test_a_credential_is_cached_after_the_helper_ran",
        "unit/upstream/test_keychain.py::test_a_helper_has_a_plain_name",
        "unit/upstream/test_keychain.py::test_a_helper_sees_our_environment_and_no_shell",
        "unit/upstream/test_keychain.py::test_a_helper_that_hangs_is_killed_with_its_children",
    ],
    "C8": [
        "unit/config/test_settings.py::test_braced_variables_are_replaced_once",
        "unit/config/test_settings.py::test_a_variable_that_is_not_set_causes_a_warning",
        "unit/config/test_settings.py::test_no_error_contains_a_secret",
    ],
    "C9": [
        "security/test_credentials.py::test_c9_two_logins_at_one_registry",
        "unit/upstream/test_tokens.py::test_two_upstreams_on_one_host_do_not_share_tokens",
    ],
    "K1": [
        "protocol/test_blobs.py::test_a_wrong_body_is_never_complete",
        "protocol/test_manifests.py::test_a_document_that_is_no_manifest_is_rejected",
        "processes/test_upstream_breaks.py::test_wrong_bodies_for_a_crowd",
        "s3/store/test_s3_faults.py::test_a_completed_blob_of_another_size_is_not_believed",
    ],
    "K2": [
        "security/test_poisoning.py::test_k2_a_document_with_two_meanings",
        "security/test_poisoning.py::test_k2_the_first_type_of_a_digest_stays",
        "unit/oci/test_manifest.py::test_a_document_of_two_shapes_is_refused",
        "unit/oci/test_manifest.py::test_a_document_that_contradicts_its_type_is_refused",
    ],
    "K3": [
        "security/test_poisoning.py::test_k3_a_request_that_spoils_a_cold_object",
        "security/test_poisoning.py::test_k3_an_override_on_a_get_changes_nothing",
    ],
    "K4": ["security/test_poisoning.py::test_k4_headers_that_name_another_place"],
    "K5": [
        "security/test_poisoning.py::test_k5_headers_of_the_upstream_are_not_passed_on",
        "security/test_poisoning.py::test_k5_too_many_headers",
    ],
    "D1": ["security/test_exhaustion.py::test_d1_encoded_answers_are_not_decoded"],
    "D2": ["security/test_exhaustion.py::test_d2_nothing_here_can_unpack"],
    "D3": [
        "protocol/test_manifests.py::test_a_large_manifest",
        "protocol/test_manifests.py::test_a_manifest_over_the_size_limit",
        "unit/oci/test_manifest.py::test_a_manifest_may_be_as_large_as_clients_take",
    ],
    "D4": ["unit/oci/test_manifest.py::test_json_that_is_broken_or_hostile_is_refused"],
    "D5": ["security/test_exhaustion.py::test_d5_what_a_bucket_says_is_not_parsed"],
    "D6": ["security/test_exhaustion.py::test_d6_more_connections_than_descriptors"],
    "D7": ["security/test_exhaustion.py::test_d7_many_unknown_tags"],
    "D8": [
        "security/test_exhaustion.py::test_d8_the_log_is_not_flooded",
        "unit/test_log.py::test_no_value_can_break_a_line",
    ],
    "D9": ["security/test_exhaustion.py::test_d9_hostile_texts_cost_little_time"],
    "D10": [
        "security/test_exhaustion.py::test_d10_there_is_no_http_2",
        "processes/test_start_stop.py::test_the_server_speaks_tls",
    ],
    **{f"F{number}": READERS for number in range(1, 7)},
    "F7": ["fuzz/test_targets.py::test_f7_frames_between_workers"],
    "F8": ["fuzz/test_http.py::test_f8_raw_http"],
    "F9": ["fuzz/test_upstream.py::test_f9_an_upstream_that_answers_anything"],
    "F10": [
        "fuzz/test_upstream.py::test_f10_a_bucket_that_answers_anything",
        "fuzz/test_upstream.py::test_f10_the_store_accepts_any_response",
    ],
    "F11": ["fuzz/test_http.py::test_f11_endpoints"],
}


def test_every_line_has_a_test() -> None:
    """The lines are counted, so that none can be dropped unseen."""
    assert list(CHECKLIST) == [f"{letter}{number + 1}" for letter, last in LENGTHS.items() for number in range(last)]
    assert all(CHECKLIST.values())


@pytest.mark.parametrize("line", CHECKLIST)
def test_the_tests_of_a_line_are_there(line: str) -> None:
    """A test that is renamed or taken away leaves its line without a guard."""
    for test in CHECKLIST[line]:
        file, _, name = test.partition("::")
        assert name in _tests_in(file), test


@cache
def _tests_in(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {node.name for node in functions if node.name.startswith("test_")}

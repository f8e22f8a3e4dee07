"""The security checklist: each line with the tests that check it; a line without an existing test fails here.

The key of a line is part of the names of the tests that were written for it (`test_n1_...`).
"""

import ast
from functools import cache

import attrs
import pytest

from tests.support.paths import ROOT

TESTS = ROOT / "tests"
LENGTHS = {"S": 4, "N": 10, "R": 7, "C": 9, "K": 5, "D": 10, "F": 11}


@attrs.frozen
class Line:
    """What is checked, and the tests that check it: file and name."""

    what: str
    tests: list[str]


CHECKLIST = {
    # Request parsing and smuggling
    "S1": Line(
        "Ambiguous or malformed requests (42 raw inputs): exact responses, no smuggled request",
        [
            "security/test_raw_requests.py::test_s1_raw_inputs",
        ],
    ),
    "S2": Line(
        "Clients that send slowly or stay idle are disconnected",
        [
            "security/test_raw_requests.py::test_s2_slow_and_idle_clients_are_cut",
        ],
    ),
    "S3": Line(
        "The body of a rejected upload is not read",
        [
            "security/test_raw_requests.py::test_s3_the_body_of_a_post_is_not_read",
        ],
    ),
    "S4": Line(
        "What only a load balancer can see (bare LF, fragments) is settled by the load balancer",
        [
            "security/test_raw_requests.py::test_s4_the_load_balancer_settles_what_dockyard_cannot_see",
        ],
    ),
    # Names, references, ranges, methods
    "N1": Line(
        "Names outside the grammar, path traversal",
        [
            "security/test_names.py::test_n1_bad_names",
            "protocol/test_names.py::test_names_outside_the_grammar",
        ],
    ),
    "N2": Line(
        "Invalid tags and digests",
        [
            "security/test_names.py::test_n2_bad_references",
        ],
    ),
    "N3": Line(
        "Repositories whose components are called `blobs` or `manifests`",
        [
            "security/test_names.py::test_n3_names_with_protocol_keywords",
            "protocol/test_names.py::test_a_repository_named_like_endpoints",
        ],
    ),
    "N4": Line(
        "Names that only resemble a configured prefix do not get its credentials",
        [
            "security/test_names.py::test_n4_a_similar_prefix_does_not_get_the_login",
            "protocol/test_routing.py::test_the_longest_prefix_by_component",
        ],
    ),
    "N5": Line(
        "The same repository and tag at two upstreams are stored separately",
        [
            "security/test_names.py::test_n5_one_path_at_two_upstreams",
        ],
    ),
    "N6": Line(
        "`ns` given twice, unknown, or naming a host inside the network",
        [
            "security/test_names.py::test_n6_duplicate_ns_parameters",
            "protocol/test_routing.py::test_an_unknown_namespace_is_rejected",
            "protocol/test_routing.py::test_a_listening_namespace_gets_no_connection",
        ],
    ),
    "N7": Line(
        "Ranges: exact bytes, limits on their number and size",
        [
            "security/test_names.py::test_n7_ranges",
            "protocol/test_ranges.py::test_ranges_of_a_cold_and_a_warm_blob",
            "protocol/test_ranges.py::test_too_many_ranges_are_a_bad_request",
        ],
    ),
    "N8": Line(
        "HEAD has the headers of GET and starts no download",
        [
            "security/test_names.py::test_n8_head_is_get_without_a_body",
        ],
    ),
    "N9": Line(
        "Writes are rejected, also by method override",
        [
            "protocol/test_routing.py::test_writes_are_not_allowed",
            "protocol/test_routing.py::test_an_override_header_does_not_write",
            "protocol/test_routing.py::test_an_upload_is_rejected_with_its_body_unread",
        ],
    ),
    "N10": Line(
        "Accept does not change what is cached",
        [
            "security/test_names.py::test_n10_accept_changes_nothing",
        ],
    ),
    # Where an upstream may redirect to (SSRF)
    "R1": Line(
        "Redirects to forbidden addresses",
        [
            "security/test_ssrf.py::test_r1_redirects",
            "protocol/test_redirects.py::test_a_public_registry_may_not_redirect_to_a_private_address",
        ],
    ),
    "R2": Line(
        "DNS rebinding; names with public and private addresses",
        [
            "security/test_ssrf.py::test_r2_dns_rebinding",
            "security/test_ssrf.py::test_r2_a_name_with_public_and_private_addresses",
        ],
    ),
    "R3": Line(
        "Realms of challenges at forbidden addresses or other domains",
        [
            "security/test_ssrf.py::test_r3_realms",
            "security/test_ssrf.py::test_r3_realms_of_other_domains",
            "unit/oci/test_challenge.py::test_any_other_realm_gets_no_credentials",
        ],
    ),
    "R4": Line(
        "`urls` in a manifest are not followed",
        [
            "security/test_ssrf.py::test_r4_urls_in_a_manifest_are_not_followed",
        ],
    ),
    "R5": Line(
        "A registry on a private address may redirect to private addresses only",
        [
            "security/test_ssrf.py::test_r5_a_private_registry_may_redirect_to_private_addresses",
            "protocol/test_redirects.py::test_a_trusted_private_address_is_followed",
        ],
    ),
    "R6": Line(
        "Proxy variables of the environment are ignored",
        [
            "security/test_ssrf.py::test_r6_proxies_of_the_environment_are_not_used",
        ],
    ),
    "R7": Line(
        "Redirect loops, long chains, malformed locations",
        [
            "protocol/test_redirects.py::test_invalid_redirects",
            "protocol/test_redirects.py::test_eleven_hops_are_too_many",
            "protocol/test_redirects.py::test_relative_locations",
            "unit/upstream/test_urls.py::test_a_location_is_resolved_against_where_we_are",
            "unit/upstream/test_urls.py::test_a_location_that_leads_astray_is_refused",
        ],
    ),
    # Credentials
    "C1": Line(
        "Credentials do not follow a redirect to another host",
        [
            "security/test_credentials.py::test_c1_c3_credentials_do_not_follow_a_redirect",
            "protocol/test_redirects.py::test_credentials_stay_with_the_registry",
        ],
    ),
    "C2": Line(
        "A redirect back to the registry gets its credentials again",
        [
            "security/test_credentials.py::test_c2_a_redirect_back_to_the_registry",
        ],
    ),
    "C3": Line(
        "Clients' own credentials are sent nowhere and are no part of a cache key",
        [
            "security/test_credentials.py::test_c1_c3_credentials_do_not_follow_a_redirect",
            "security/test_credentials.py::test_c3_a_clients_own_login_is_no_part_of_a_cache_key",
        ],
    ),
    "C4": Line(
        "Scopes and realms of challenges are not trusted",
        [
            "security/test_credentials.py::test_c4_the_scope_of_a_challenge_is_ignored",
            "security/test_credentials.py::test_c4_basic_is_not_sent_to_a_realm",
            "protocol/test_auth.py::test_challenges_of_every_shape",
            "protocol/test_keychain.py::test_basic_credentials_are_not_sent_in_plain_text",
            "unit/oci/test_challenge.py::test_a_hostile_header_costs_little_time",
        ],
    ),
    "C5": Line(
        "Invalid tokens, lifetimes and token responses",
        [
            "security/test_credentials.py::test_c5_invalid_token_lifetimes",
            "security/test_credentials.py::test_c5_invalid_token_responses",
            "unit/upstream/test_tokens.py::test_a_token_is_kept_for_two_thirds_of_its_life",
        ],
    ),
    "C6": Line(
        "Errors of upstream and bucket do not reveal credentials",
        [
            "security/test_credentials.py::test_c6_errors_that_echo_the_request",
            "security/test_credentials.py::test_c6_connections_that_fail",
            "protocol/test_keychain.py::test_a_failing_helper_is_an_error_not_anonymous_access",
        ],
    ),
    "C7": Line(
        "Credential helpers: errors, timeouts, environment",
        [
            "protocol/test_keychain.py::test_a_failing_helper_is_an_error_not_anonymous_access",
            "protocol/test_keychain.py::test_a_cached_tag_outlives_its_helper",
            "protocol/test_keychain.py::test_a_credential_is_cached_after_the_helper_ran",
            "unit/upstream/test_keychain.py::test_a_helper_has_a_plain_name",
            "unit/upstream/test_keychain.py::test_a_helper_sees_our_environment_and_no_shell",
            "unit/upstream/test_keychain.py::test_a_helper_that_hangs_is_killed_with_its_children",
        ],
    ),
    "C8": Line(
        "Variables in the configuration; secrets in error messages",
        [
            "unit/config/test_settings.py::test_braced_variables_are_replaced_once",
            "unit/config/test_settings.py::test_a_variable_that_is_not_set_causes_a_warning",
            "unit/config/test_settings.py::test_no_error_contains_a_secret",
        ],
    ),
    "C9": Line(
        "Upstreams on one host do not share tokens",
        [
            "security/test_credentials.py::test_c9_two_logins_at_one_registry",
            "unit/upstream/test_tokens.py::test_two_upstreams_on_one_host_do_not_share_tokens",
        ],
    ),
    # Cache poisoning
    "K1": Line(
        "Bodies that do not match their digest",
        [
            "protocol/test_blobs.py::test_a_wrong_body_is_never_complete",
            "protocol/test_manifests.py::test_a_document_that_is_no_manifest_is_rejected",
            "processes/test_upstream_breaks.py::test_wrong_bodies_for_many_clients",
            "s3/store/test_faults.py::test_a_completed_blob_of_another_size_is_an_error",
        ],
    ),
    "K2": Line(
        "Manifests with two meanings, media types that change",
        [
            "security/test_poisoning.py::test_k2_an_ambiguous_document",
            "security/test_poisoning.py::test_k2_the_first_media_type_of_a_digest_is_kept",
            "unit/oci/test_manifest.py::test_a_document_of_two_kinds_is_rejected",
            "unit/oci/test_manifest.py::test_a_document_that_contradicts_its_type_is_rejected",
        ],
    ),
    "K3": Line(
        "Rejected requests leave no error in the cache",
        [
            "security/test_poisoning.py::test_k3_a_rejected_request_is_not_cached",
            "security/test_poisoning.py::test_k3_a_method_override_on_get_changes_nothing",
        ],
    ),
    "K4": Line(
        "Host and forwarding headers change no cache key",
        [
            "security/test_poisoning.py::test_k4_headers_that_name_another_host",
        ],
    ),
    "K5": Line(
        "Headers of the upstream are not passed on",
        [
            "security/test_poisoning.py::test_k5_headers_of_the_upstream_are_not_passed_on",
            "security/test_poisoning.py::test_k5_too_many_headers",
        ],
    ),
    # Resource exhaustion
    "D1": Line(
        "Compressed responses are no bombs",
        [
            "security/test_exhaustion.py::test_d1_compressed_responses_are_no_bombs",
        ],
    ),
    "D2": Line(
        "One module can decompress, with a limit",
        [
            "security/test_exhaustion.py::test_d2_one_module_imports_a_decompressor",
        ],
    ),
    "D3": Line(
        "The size limit of manifests",
        [
            "protocol/test_manifests.py::test_a_large_manifest",
            "protocol/test_manifests.py::test_a_manifest_over_the_size_limit",
            "unit/oci/test_manifest.py::test_a_manifest_may_be_as_large_as_clients_accept",
        ],
    ),
    "D4": Line(
        "Deeply nested or malformed JSON",
        [
            "unit/oci/test_manifest.py::test_invalid_or_hostile_json_is_rejected",
        ],
    ),
    "D5": Line(
        "XML of the bucket: entities, depth, size",
        [
            "security/test_exhaustion.py::test_d5_hostile_xml_of_the_bucket",
        ],
    ),
    "D6": Line(
        "More connections than file descriptors",
        [
            "security/test_exhaustion.py::test_d6_more_connections_than_descriptors",
        ],
    ),
    "D7": Line(
        "Many unknown names and tags",
        [
            "security/test_exhaustion.py::test_d7_many_unknown_tags",
        ],
    ),
    "D8": Line(
        "Log lines: length, control characters, number",
        [
            "security/test_exhaustion.py::test_d8_the_log_is_not_flooded",
            "unit/test_log.py::test_no_value_can_break_a_line",
        ],
    ),
    "D9": Line(
        "CPU time of the parsers for hostile texts",
        [
            "security/test_exhaustion.py::test_d9_hostile_texts_cost_little_time",
        ],
    ),
    "D10": Line(
        "No HTTP/2",
        [
            "security/test_exhaustion.py::test_d10_there_is_no_http_2",
            "processes/test_start_stop.py::test_the_server_speaks_tls",
        ],
    ),
    # Fuzzing
    "F1": Line(
        "Fuzzing: request paths",
        [
            "fuzz/test_targets.py::test_parsers_with_random_input",
        ],
    ),
    "F2": Line(
        "Fuzzing: ranges",
        [
            "fuzz/test_targets.py::test_parsers_with_random_input",
        ],
    ),
    "F3": Line(
        "Fuzzing: challenges",
        [
            "fuzz/test_targets.py::test_parsers_with_random_input",
        ],
    ),
    "F4": Line(
        "Fuzzing: manifests",
        [
            "fuzz/test_targets.py::test_parsers_with_random_input",
        ],
    ),
    "F5": Line(
        "Fuzzing: redirect locations",
        [
            "fuzz/test_targets.py::test_parsers_with_random_input",
        ],
    ),
    "F6": Line(
        "Fuzzing: settings and keychains",
        [
            "fuzz/test_targets.py::test_parsers_with_random_input",
        ],
    ),
    "F7": Line(
        "Fuzzing: messages between workers",
        [
            "fuzz/test_targets.py::test_f7_messages_between_workers",
        ],
    ),
    "F8": Line(
        "Fuzzing: raw HTTP",
        [
            "fuzz/test_http.py::test_f8_raw_http",
        ],
    ),
    "F9": Line(
        "Fuzzing: responses of the upstream",
        [
            "fuzz/test_upstream.py::test_f9_random_upstream_responses",
        ],
    ),
    "F10": Line(
        "Fuzzing: responses of the bucket",
        [
            "fuzz/test_upstream.py::test_f10_random_bucket_responses",
            "fuzz/test_upstream.py::test_f10_the_store_accepts_any_response",
        ],
    ),
    "F11": Line(
        "Fuzzing: endpoints",
        [
            "fuzz/test_http.py::test_f11_endpoints",
        ],
    ),
}


def test_every_line_has_a_test() -> None:
    """The lines are counted, so that none can be dropped unnoticed."""
    assert list(CHECKLIST) == [f"{letter}{number + 1}" for letter, last in LENGTHS.items() for number in range(last)]
    assert all(line.tests for line in CHECKLIST.values())


@pytest.mark.parametrize("key", CHECKLIST)
def test_the_tests_of_a_line_exist(key: str) -> None:
    """A test that is renamed or deleted must be replaced here."""
    for test in CHECKLIST[key].tests:
        file, _, name = test.partition("::")
        assert name in _tests_in(file), test


@cache
def _tests_in(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {node.name for node in functions if node.name.startswith("test_")}

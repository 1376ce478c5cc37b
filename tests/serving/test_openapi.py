"""The API does what its own OpenAPI document says, whatever it is sent."""

from __future__ import annotations

import httpx
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import checks

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


def test_every_answer_is_one_of_the_documents(server):
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in api.get_all_operations()]
    assert len(operations) >= 10
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        def ask(case):
            case.call_and_validate(checks=CHECKS)

        ask()


def test_the_document_shows_examples(server):
    document = httpx.get(f"{server.url}/openapi.json").json()
    assert set(document["paths"]) >= {"/v1/classify", "/v1/classifiers/{name}", "/v1/embeddings"}
    assert document["components"]["schemas"]["ClassifierRequest"]["examples"]

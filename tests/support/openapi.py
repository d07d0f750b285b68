"""Judges the description of the HTTP interface, and requests and answers by it.

Reads {"document": …, "requests": [{"path", "method", "body"}], "answers": [the same]} from standard input. Says what is
wrong with any of them, and ends with 1 then.
"""

import json
import sys

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator


def main() -> int:
    said = json.load(sys.stdin)
    document = said["document"]
    wrong = [f"the document: {error.json_path}: {error.message}" for error in OpenAPIV31SpecValidator(document).iter_errors()]

    def judge(what: str, about: dict, described) -> None:
        name = f"{what} {about['method']} {about['path']}"
        content = described(document["paths"][about["path"]][about["method"]]).get("content")
        if content is None:
            wrong.append(f"{name}: no schema")
            return
        schema = content["application/json"]["schema"] | {"components": document["components"]}
        errors = Draft202012Validator(schema).iter_errors(about["body"])
        wrong.extend(f"{name}: {error.json_path}: {error.message[:300]}" for error in errors)

    for request in said["requests"]:
        judge("the request", request, lambda operation: operation.get("requestBody", {}))
    for answer in said["answers"]:
        judge("the answer of", answer, lambda operation: operation["responses"]["200"])
    print("\n".join(wrong))
    return int(bool(wrong))


sys.exit(main())

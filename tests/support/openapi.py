"""Judges the description of the HTTP interface, and answers by it.

Reads {"document": …, "answers": [{"path", "method", "body"}]} from standard input. Says what is wrong with either, and
ends with 1 then.
"""

import json
import sys

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator


def main() -> int:
    said = json.load(sys.stdin)
    document = said["document"]
    wrong = [f"the document: {error.json_path}: {error.message}" for error in OpenAPIV31SpecValidator(document).iter_errors()]
    for answer in said["answers"]:
        operation = document["paths"][answer["path"]][answer["method"]]
        content = operation["responses"]["200"].get("content")
        if content is None:
            wrong.append(f"{answer['method']} {answer['path']}: no schema")
            continue
        schema = content["application/json"]["schema"] | {"components": document["components"]}
        errors = Draft202012Validator(schema).iter_errors(answer["body"])
        wrong += [f"{answer['method']} {answer['path']}: {error.json_path}: {error.message[:300]}" for error in errors]
    print("\n".join(wrong))
    return int(bool(wrong))


sys.exit(main())

"""The snippets of the Hub's page about the task, with only the host and the model's id changed.

https://huggingface.co/docs/api-inference/tasks/chat-completion. They send `inputs` to a chat model;
beside each stands the same with `messages`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from shutil import which
from typing import Any

import pytest

from tests.server import MODEL, Server

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(300)]

CURL = r"""
curl https://api-inference.huggingface.co/models/undefined \
	-X POST \
	-d '{"inputs": "Can you please let us know more details about your "}' \
	-H 'Content-Type: application/json' \
	-H "Authorization: Bearer hf_***"

"""

PYTHON = """
import requests

API_URL = "https://api-inference.huggingface.co/models/undefined"
headers = {"Authorization": "Bearer hf_***"}

def query(payload):
	response = requests.post(API_URL, headers=headers, json=payload)
	return response.json()
	
output = query({
	"inputs": "Can you please let us know more details about your ",
})
"""  # noqa: W293 - as it is on the page

JAVASCRIPT = """
async function query(data) {
	const response = await fetch(
		"https://api-inference.huggingface.co/models/undefined",
		{
			headers: {
				Authorization: "Bearer hf_***"
				"Content-Type": "application/json",
			},
			method: "POST",
			body: JSON.stringify(data),
		}
	);
	const result = await response.json();
	return result;
}

query({"inputs": "Can you please let us know more details about your "}).then((response) => {
	console.log(JSON.stringify(response));
});
"""


def _curl(snippet: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", snippet], capture_output=True, text=True, timeout=120, check=True)


def _python(snippet: str) -> subprocess.CompletedProcess[str]:
    """The snippet ends with its variable `output`: a line that prints it is added."""
    code = f"{snippet}\nimport json; print(json.dumps(output))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)


def _javascript(snippet: str) -> subprocess.CompletedProcess[str]:
    """As printed it is no JavaScript: a comma is missing after the header of the key."""
    code = snippet.replace('"Bearer hf_***"\n', '"Bearer hf_***",\n')
    return subprocess.run(["node", "-e", code], capture_output=True, text=True, timeout=120, check=True)


SNIPPETS = {"curl": (CURL, _curl), "python": (PYTHON, _python), "javascript": (JAVASCRIPT, _javascript)}
INPUTS = '"inputs": "Can you please let us know more details about your "'
MESSAGES = '"messages": [{"role": "user", "content": "What is the capital of France?"}]'


def output_of(server: Server, language: str, asked: str) -> Any:
    snippet, run = SNIPPETS[language]
    assert INPUTS in snippet
    here = snippet.replace("https://api-inference.huggingface.co", server.url).replace("undefined", MODEL)
    return json.loads(run(here.replace(INPUTS, asked)).stdout)


NEEDS = {"curl": "curl", "python": "python3", "javascript": "node"}
LANGUAGES = pytest.mark.parametrize(
    "language",
    [
        pytest.param(language, marks=pytest.mark.skipif(not which(program), reason=f"{program} is not on this machine"))
        for language, program in NEEDS.items()
    ],
)


@LANGUAGES
def test_the_snippet_as_it_is(server: Server, language: str) -> None:
    (answer,) = output_of(server, language, INPUTS)
    assert set(answer) == {"generated_text"}
    assert answer["generated_text"].strip()


@LANGUAGES
def test_the_snippet_with_messages(server: Server, language: str) -> None:
    answer = output_of(server, language, MESSAGES)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["model"] == MODEL

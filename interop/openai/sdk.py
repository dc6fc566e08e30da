"""Streams one completion with OpenAI's Python SDK and prints each token, then requests a whole one.
An error is printed as a program sees it. The base URL and the key come from the environment."""

import json

import httpx
import openai

client = openai.OpenAI()
asked = {"messages": [{"role": "user", "content": "The keeper"}], "model": "harbour", "max_tokens": 12}
try:
    for part in client.chat.completions.create(**asked, stream=True):
        token = part.choices[0].delta.content
        if token:
            print(json.dumps({"token": token}), flush=True)
    whole = client.chat.completions.create(**asked)
    print(json.dumps({"whole": whole.choices[0].message.content}))
except openai.APIStatusError as error:
    problem = error.response.json()
    seen = {"error": type(error).__name__, "status": error.status_code}
    print(json.dumps({**seen, "reason": problem["reason"], "retry": problem["retry"]}))
except httpx.RemoteProtocolError as error:
    print(json.dumps({"error": type(error).__name__}))

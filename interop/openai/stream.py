"""Streams one completion as OpenAI's Python SDK does (the same HTTP client, fields and content),
and prints each token. The base URL and the key come from the environment."""

import json
import os

import httpx

base, key = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]
asked = {"messages": [{"role": "user", "content": "The keeper"}], "model": "harbour", "max_tokens": 12}
fields = {
    "Accept": "application/json",
    "Content-Type": "application/json",
    "User-Agent": "OpenAI/Python 1.109.1",
    "X-Stainless-Lang": "python",
    "X-Stainless-Async": "false",
    "X-Stainless-Retry-Count": "0",
    "Authorization": "Bearer " + key,
}
url = base + "/chat/completions"
with httpx.Client(timeout=httpx.Timeout(600, connect=5), follow_redirects=True) as client:
    with client.stream("POST", url, json={**asked, "stream": True}, headers=fields) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            line = line.strip()
            if line.startswith("data: {"):
                token = json.loads(line[6:])["choices"][0]["delta"].get("content")
                if token:
                    print(json.dumps({"token": token}), flush=True)
            elif line == "data: [DONE]":
                break
    whole = client.post(url, json=asked, headers=fields)
    whole.raise_for_status()
    print(json.dumps({"whole": whole.json()["choices"][0]["message"]["content"]}))

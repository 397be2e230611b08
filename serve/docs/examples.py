"""Calls to copy: with curl, OpenAI's client and a browser's WebSocket."""

from __future__ import annotations


def examples(base_url: str, model: str, keyed: bool) -> list[tuple[str, str]]:
    """Titles and texts of the examples.

    Args:
        base_url: Address of the endpoint.
        model: Name of the served model.
        keyed: Whether they carry an API key.
    """
    header = ' \\\n  -H "authorization: Bearer $CASA_API_KEY"' if keyed else ""
    key = 'os.environ["CASA_API_KEY"]' if keyed else '"unused"'
    imports = "import base64\nimport os\n" if keyed else "import base64\n"
    protocols = ', ["casa.live", `casa.key.${key}`]' if keyed else ""
    socket_url = base_url.replace("http", "ws", 1)
    curl = f"""curl -s {base_url}/v1/chat/completions{header} \\
  -H 'content-type: application/json' \\
  -d '{{"model": "{model}", "messages": [{{"role": "user", "content": [
        {{"type": "image_url", "image_url": {{"url": "data:image/png;base64,'"$(base64 -w0 cat.png)"'"}}}},
        {{"type": "text", "text": "what is in the picture?"}}]}}]}}'"""
    python = f"""{imports}from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url="{base_url}/v1", api_key={key})
picture = base64.b64encode(Path("cat.png").read_bytes()).decode()
stream = client.chat.completions.create(
    model="{model}",
    messages=[{{"role": "user", "content": [
        {{"type": "image_url", "image_url": {{"url": f"data:image/png;base64,{{picture}}"}}}},
        {{"type": "text", "text": "what is in the picture?"}},
    ]}}],
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="")"""
    socket = f"""const socket = new WebSocket("{socket_url}/v1/live"{protocols});
socket.onopen = () => socket.send(JSON.stringify({{ type: "session.start", query: "what happens?" }}));
socket.onmessage = ({{ data }}) => console.log(JSON.parse(data));
// then, for each frame: eight bytes of time (float64, little-endian), followed by a JPEG"""
    return [("curl", curl), ("Python, OpenAI's client", python), ("Live captions in a browser", socket)]

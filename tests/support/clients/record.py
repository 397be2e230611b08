"""`python -m tests.support.clients.record CLIENT…` writes what installed clients send into `recorded/`.

Only where every outcome is right. LangChain and LiteLLM come with the extra `clients`; lmms-eval's model runs
with the few of its requirements that it imports:
`pip install --no-deps lmms-eval loguru python-dotenv evaluate accelerate datasets dill multiprocess xxhash`.
"""

from __future__ import annotations

import sys

from tests.support.clients.calls import serving
from tests.support.clients.programs import calls_of, make_all, versions
from tests.support.clients.recorder import Recorder, write


def main(clients: list[str]) -> None:
    """Record some clients and print how many calls each could make."""
    recorder = Recorder()
    with serving(recorder) as url:
        for client in clients:
            made = make_all(client, url, recorder)
            wrong = [
                name
                for name, outcome in made.outcomes.items()
                if not calls_of(client)[name].right.agrees(outcome)
            ]
            for name in wrong:
                print(f"{client}, {name}: {made.outcomes[name]}, not {calls_of(client)[name].right}")
            if not wrong:
                write(client, {"versions": versions(client), **vars(made)})
            print(
                client,
                len(made.outcomes),
                "made,",
                len(made.inexpressible),
                "not expressible,",
                len(wrong),
                "wrong",
            )


if __name__ == "__main__":
    main(sys.argv[1:])

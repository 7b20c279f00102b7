"""`python -m causal_dfq` is the command line."""

from causal_dfq.cli import run

if __name__ == "__main__":
    run()

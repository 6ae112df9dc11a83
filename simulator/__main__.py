"""`python -m simulator`: see simulator.cli."""

from simulator.cli import simulate

if __name__ == "__main__":
    simulate()

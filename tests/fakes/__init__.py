"""What tests stand on: pods, clients, gateways and stores that are made up, or run as processes. No test is in here.

Test modules come in by the file that is named after what it makes, and import nothing from each other.
A fake stands at the edge, on real sockets where it can; none takes the place of code of ours.
"""

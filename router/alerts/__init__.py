"""What an operator should look at now: conditions, looked at every second, with since when and why they hold.

`alerts.Alerts` is the way in. It tells; it changes nothing.
"""

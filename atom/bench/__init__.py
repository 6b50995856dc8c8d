"""The serving benchmark: load client, workloads, metrics, run history, comparison, dashboard.

It talks to servers over HTTP and imports no torch. `types` holds what crosses between its rooms.
"""

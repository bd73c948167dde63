"""``topicsvc doctor``: tries what a configuration names, and reports what does not work."""

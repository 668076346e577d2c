"""Adapters to relays. They move opaque bytes; none of them can open one."""

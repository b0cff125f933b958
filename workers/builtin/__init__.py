"""Tasks that come with eventq and work on real data."""

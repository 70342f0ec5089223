"""The trials of a sweep: their queue, and their leaderboard."""

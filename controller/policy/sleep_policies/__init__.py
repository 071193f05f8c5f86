"""Sleep policies: how long an idle agent is kept awake."""

"""The agent as a process: started, asked, stopped, woken."""

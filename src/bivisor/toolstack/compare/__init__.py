"""One guest and one small workload under each way of virtualizing it, counted and explained: `bivisor compare`."""

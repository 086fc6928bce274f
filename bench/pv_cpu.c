/* A loop that asks nobody for anything: ROUNDS times, on processor CPU if that is given, each said with the milliseconds
 * of wall clock and of processor time that it took. See pv_cpu.py. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

int main(int argc, char **argv)
{
	if (argc > 2) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(atoi(argv[2]), &set);
		sched_setaffinity(0, sizeof set, &set);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("round begin 0 0");
	for (int round = argc > 1 ? atoi(argv[1]) : 1; round > 0; round--) {
		double wall = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
		volatile unsigned long sink;
		unsigned long x = 88172645463325252UL;

		for (long turn = 0; turn < 200000000L; turn++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
		}
		sink = x;
		(void)sink;
		wall = now(CLOCK_MONOTONIC) - wall;
		cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
		printf("round end %.2f %.2f\n", wall, cpu);
	}
	return 0;
}

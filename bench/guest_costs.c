/* What a kernel's services cost a program: picoseconds each, the least of several rounds, one line for each.
 *
 * Freestanding, so that nothing but a compiler is needed; the clock is asked by a system call, so that no row depends on
 * whether the guest has a vDSO clock. `guest child` is the program that the fork row executes.
 */

typedef unsigned long u64;

enum { READ, WRITE, CLOSE = 3, MMAP = 9, MUNMAP = 11, PIPE = 22, GETPPID = 110, FORK = 57, EXECVE = 59, EXIT, WAIT4,
       CLOCK_GETTIME = 228 };
enum { ROUNDS = 7, ROUND_NS = 500000000, PAGE = 4096 };

static long call(long nr, long a, long b, long c, long d)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = -1;
	register long r9 __asm__("r9") = 0;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

static u64 now(void)
{
	long at[2];
	call(CLOCK_GETTIME, 1, (long)at, 0, 0);
	return (u64)at[0] * 1000000000 + at[1];
}

static void fail(const char *why, long length)
{
	call(WRITE, 2, (long)why, length, 0);
	call(EXIT, 1, 0, 0, 0);
}

static void say(const char *name, u64 picoseconds)
{
	char line[64], digits[24];
	int at = 0, count = 0;
	while (*name)
		line[at++] = *name++;
	line[at++] = ' ';
	do
		digits[count++] = '0' + picoseconds % 10;
	while (picoseconds /= 10);
	while (count)
		line[at++] = digits[--count];
	line[at++] = '\n';
	call(WRITE, 1, (long)line, at, 0);
}

static void loop(int count) /* a million turns a count: what the processor does without the kernel */
{
	u64 x = 88172645463325252UL;
	for (long turn = 0; turn < 1000000L * count; turn++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
	}
	__asm__ volatile("" : : "r"(x));
}

static void system_call(int count)
{
	while (count--)
		call(GETPPID, 0, 0, 0, 0);
}

static void page_fault(int count)
{
	char *at = (char *)call(MMAP, 0, (long)count * PAGE, 3, 0x22); /* PROT_READ | WRITE, MAP_PRIVATE | ANONYMOUS */
	if ((u64)at > -4096UL)
		fail("mmap\n", 5);
	for (int page = 0; page < count; page++)
		*(volatile char *)(at + (long)page * PAGE) = 1;
	call(MUNMAP, (long)at, (long)count * PAGE, 0, 0);
}

static void context_switch(int count) /* two processes hand one byte back and forth: two switches a turn */
{
	int there[2], back[2];
	char byte = 0;
	if (call(PIPE, (long)there, 0, 0, 0) || call(PIPE, (long)back, 0, 0, 0))
		fail("pipe\n", 5);
	long child = call(FORK, 0, 0, 0, 0);
	if (child == 0) {
		for (int turn = 0; turn < count / 2; turn++) {
			call(READ, there[0], (long)&byte, 1, 0);
			call(WRITE, back[1], (long)&byte, 1, 0);
		}
		call(EXIT, 0, 0, 0, 0);
	}
	for (int turn = 0; turn < count / 2; turn++) {
		call(WRITE, there[1], (long)&byte, 1, 0);
		call(READ, back[0], (long)&byte, 1, 0);
	}
	call(WAIT4, child, 0, 0, 0);
	for (int end = 0; end < 2; end++) {
		call(CLOSE, there[end], 0, 0, 0);
		call(CLOSE, back[end], 0, 0, 0);
	}
}

static void fork_exec(int count)
{
	static char name[] = "/proc/self/exe", word[] = "child";
	char *arguments[] = {name, word, 0}, *environment[] = {0};
	while (count--) {
		long child = call(FORK, 0, 0, 0, 0);
		if (child == 0) {
			call(EXECVE, (long)name, (long)arguments, (long)environment, 0);
			call(EXIT, 1, 0, 0, 0);
		}
		int status = 0;
		call(WAIT4, child, (long)&status, 0, 0);
		if (status)
			fail("exec\n", 5);
	}
}

static u64 timed(void (*job)(int), int count)
{
	u64 before = now();
	job(count);
	return now() - before;
}

static void measure(const char *name, void (*job)(int), int count)
{
	u64 least = -1UL, each = timed(job, 4) / 4;
	if (each * count > ROUND_NS)
		count = each * 4 > ROUND_NS ? 4 : ROUND_NS / each;
	count &= ~1; /* a context switch comes in pairs */
	for (int round = 0; round < ROUNDS; round++) {
		u64 passed = timed(job, count);
		if (passed < least)
			least = passed;
	}
	say(name, least * 1000 / count);
}

__attribute__((used)) static void begin(long *stack)
{
	if (*stack > 1)
		call(EXIT, 0, 0, 0, 0);
	measure("loop", loop, 6);
	measure("system_call", system_call, 20000);
	measure("page_fault", page_fault, 2000);
	measure("context_switch", context_switch, 2000);
	measure("fork_exec", fork_exec, 30);
	call(EXIT, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n");

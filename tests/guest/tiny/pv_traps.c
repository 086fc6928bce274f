/* Does what a program may not, each in a process of its own, and says how that one ended: "NAME STATUS" in a line, the
 * status as wait4() has it, in hexadecimal. Freestanding, so that nothing but a compiler is needed.
 */

typedef unsigned long u64;

enum { WRITE = 1, RT_SIGRETURN = 15, GETPID = 39, FORK = 57, EXIT = 60, WAIT4 = 61, GETPID_32 = 20 };

static long call(long nr, long a, long b, long c, long d)
{
	long result;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return result;
}

static void finish(int status)
{
	call(EXIT, status, 0, 0, 0);
}

#define DOES(name, code) static void name(void) { __asm__ volatile(code); finish(0); }
#define JUMP(name, to) DOES(name, "movabs $" to ", %rax; jmp *%rax")
#define LOAD(name, from) DOES(name, "movabs $" from ", %rax; mov (%rax), %rax")

static void int80(void)
{
	int pid;
	__asm__ volatile("int $0x80" : "=a"(pid) : "a"(GETPID_32) : "memory");
	finish(pid != call(GETPID, 0, 0, 0, 0));
}

DOES(int3_, "int3")
DOES(int_3, ".byte 0xcd, 3")
DOES(int_4, ".byte 0xcd, 4")
DOES(int_0, "int $0")
DOES(int_2, "int $2")
DOES(int_6, "int $6")
DOES(int_8, "int $8")
DOES(int_14, "int $14")
DOES(int_2e, "int $0x2e")
DOES(int_82, "int $0x82")
DOES(int_f0, "int $0xf0")
DOES(icebp, ".byte 0xf1")
DOES(ud2_, "ud2")
DOES(divide, "xor %edx, %edx; xor %ecx, %ecx; div %ecx")
DOES(port_in, "in $0x60, %al")
DOES(port_call, "out %al, $0xe8")
DOES(port_trap, "out %al, $0xe9")
DOES(port_crash, "out %al, $0xea")
DOES(cli_, "cli")
DOES(hlt_, "hlt")
DOES(rdmsr_, "mov $0x10, %ecx; rdmsr")
DOES(read_cr, "mov %cr0, %rax")
DOES(lidt_, "lidt -16(%rsp)")
DOES(swapgs_, "swapgs")
DOES(sysret_, "sysretq")
DOES(iret_, "mov %rsp, %rax; push $0x2b; push %rax; push $0x202; push $0x1230; push $0; iretq")
DOES(iret_cpl0, "mov %rsp, %rax; push $0x10; push %rax; push $0x202; push $0xe008; push $0; iretq")
DOES(far_cpl0, "sub $16, %rsp; movl $0, (%rsp); movw $0xe008, 4(%rsp); ljmp *(%rsp)")
DOES(load_ss, "mov $0xe010, %eax; mov %eax, %ss")
DOES(load_ds, "mov $0xffff, %eax; mov %eax, %ds")
DOES(too_long, ".fill 15, 1, 0x66; nop")
DOES(step, "pushf; orl $0x100, (%rsp); popf; nop; nop")
DOES(misaligned, "pushf; orl $0x40000, (%rsp); popf; and $-8, %rsp; mov -63(%rsp), %ecx")
JUMP(jump_null, "0")
JUMP(jump_wild, "0x8000000000001234")
JUMP(jump_hypervisor, "0xffff808000000000")
JUMP(jump_kernel, "0xffffffff81000000")
LOAD(load_wild, "0x8000000000001234")
LOAD(load_hypervisor, "0xffff808000000000")
LOAD(load_kernel, "0xffffffff81000000")

static void sigreturn(void)
{
	static u64 frame[40]; /* struct ucontext: sigcontext is at 5, RSP, RIP, RFLAGS and the selectors at 20 */
	frame[20] = (u64)frame;
	frame[21] = 0x8000000000001234;
	frame[22] = 0x202;
	frame[23] = 0x002b000000000033;
	__asm__ volatile("mov %0, %%rsp; syscall" ::"r"(frame), "a"(RT_SIGRETURN) : "rcx", "r11", "memory");
}

#define CASE(name) { #name, name }
static const struct { const char *name; void (*does)(void); } CASES[] = {
	CASE(int80), CASE(int3_), CASE(int_3), CASE(int_4), CASE(int_0), CASE(int_2), CASE(int_6), CASE(int_8), CASE(int_14),
	CASE(int_2e), CASE(int_82), CASE(int_f0), CASE(icebp), CASE(ud2_), CASE(divide), CASE(port_in), CASE(port_call),
	CASE(port_trap), CASE(port_crash), CASE(cli_), CASE(hlt_), CASE(rdmsr_), CASE(read_cr), CASE(lidt_), CASE(swapgs_),
	CASE(sysret_), CASE(iret_), CASE(iret_cpl0), CASE(far_cpl0), CASE(load_ss), CASE(load_ds), CASE(too_long), CASE(step),
	CASE(misaligned), CASE(jump_null), CASE(jump_wild), CASE(jump_hypervisor), CASE(jump_kernel), CASE(load_wild),
	CASE(load_hypervisor), CASE(load_kernel), CASE(sigreturn),
};

static void say(const char *name, unsigned status)
{
	char line[64];
	int at = 0;
	while (*name)
		line[at++] = *name++;
	line[at++] = ' ';
	for (int shift = 12; shift >= 0; shift -= 4)
		line[at++] = "0123456789abcdef"[status >> shift & 15];
	line[at++] = '\n';
	call(WRITE, 1, (long)line, at, 0);
}

__attribute__((force_align_arg_pointer)) void _start(void)
{
	for (unsigned at = 0; at < sizeof CASES / sizeof *CASES; at++) {
		int status = 0;
		long child = call(FORK, 0, 0, 0, 0);
		if (!child) {
			CASES[at].does();
			finish(0);
		}
		call(WAIT4, child, (long)&status, 0, 0);
		say(CASES[at].name, status & 0xff7f); /* without the bit of a core dump */
	}
	finish(0);
}

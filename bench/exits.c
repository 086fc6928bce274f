/* The port-exit loop of bench/exits.py in C: reads a number of exits from each line of standard input, lets the guest
 * exit that often, and prints the microseconds that one took. Exits with status 2 where KVM cannot be had. */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

static unsigned long last;

static void sink(unsigned port, unsigned size, const unsigned char *data)
{
    unsigned long value = 0;
    (void)port;
    memcpy(&value, data, size);
    last = value;
}

static void (*ports[65536])(unsigned, unsigned, const unsigned char *);

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int need(int result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(2);
    }
    return result;
}

int main(void)
{
    static const unsigned char code[] = {0xba, 0xf8, 0x03, 0xb0, 0x41, 0xee, 0xeb, 0xfd};
    int kvm = need(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    int vm = need(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    unsigned char *memory = mmap(NULL, 0x9000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = {.memory_size = 0x9000, .userspace_addr = (unsigned long)memory};
    need(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    memcpy(memory + 0x1000, code, sizeof code);
    int vcpu = need(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    int size = need(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
    struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    struct kvm_sregs sregs;
    need(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    sregs.cs.base = sregs.cs.selector = 0;
    need(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
    need(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
    ports[0x3f8] = sink;

    char line[32];
    while (fgets(line, sizeof line, stdin)) {
        long count = atol(line);
        double started = now();
        for (long left = count; left > 0; left--) {
            need(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
            switch (run->exit_reason) {
            case KVM_EXIT_IO:
                if (ports[run->io.port])
                    ports[run->io.port](run->io.port, run->io.size, (unsigned char *)run + run->io.data_offset);
                break;
            default:
                fprintf(stderr, "exit reason %u\n", run->exit_reason);
                return 3;
            }
        }
        printf("%.4f\n", (now() - started) / count);
        fflush(stdout);
    }
    return 0;
}

"""Numbers of the x86-64 architecture: control-register bits, MSRs, CPUID features, vectors, VM-exit reasons.

Intel SDM volumes 3 and 4 (2.5 control registers, 2.2.1 EFER, 6.15 exceptions, 10 APIC, appendix C exit reasons;
volume 4 chapter 2 MSRs) and AMD APM volume 3 appendix E (CPUID). Names are the manuals'.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import NamedTuple


class Cr0(IntFlag):
    """CR0 (SDM 3A 2.5)."""

    PE = 1 << 0
    MP = 1 << 1
    EM = 1 << 2
    TS = 1 << 3
    ET = 1 << 4
    NE = 1 << 5
    WP = 1 << 16
    AM = 1 << 18
    NW = 1 << 29
    CD = 1 << 30
    PG = 1 << 31


class Cr4(IntFlag):
    """CR4 (SDM 3A 2.5)."""

    VME = 1 << 0
    PVI = 1 << 1
    TSD = 1 << 2
    DE = 1 << 3
    PSE = 1 << 4
    PAE = 1 << 5
    MCE = 1 << 6
    PGE = 1 << 7
    PCE = 1 << 8
    OSFXSR = 1 << 9
    OSXMMEXCPT = 1 << 10
    UMIP = 1 << 11
    LA57 = 1 << 12
    VMXE = 1 << 13
    SMXE = 1 << 14
    FSGSBASE = 1 << 16
    PCIDE = 1 << 17
    OSXSAVE = 1 << 18
    SMEP = 1 << 20
    SMAP = 1 << 21
    PKE = 1 << 22


class Efer(IntFlag):
    """IA32_EFER (SDM 3A 2.2.1; SVME and FFXSR are AMD's)."""

    SCE = 1 << 0
    LME = 1 << 8
    LMA = 1 << 10
    NX = 1 << 11
    SVME = 1 << 12
    FFXSR = 1 << 14


class Rflags(IntFlag):
    """RFLAGS (SDM 1 3.4.3). Bit 1 always reads as one."""

    CF = 1 << 0
    FIXED = 1 << 1
    PF = 1 << 2
    AF = 1 << 4
    ZF = 1 << 6
    SF = 1 << 7
    TF = 1 << 8
    IF = 1 << 9
    DF = 1 << 10
    OF = 1 << 11
    IOPL = 3 << 12
    NT = 1 << 14
    RF = 1 << 16
    VM = 1 << 17
    AC = 1 << 18
    VIF = 1 << 19
    VIP = 1 << 20
    ID = 1 << 21


class Pte(IntFlag):
    """Page-table entries (SDM 3A 4.5)."""

    P = 1 << 0
    RW = 1 << 1
    US = 1 << 2
    PWT = 1 << 3
    PCD = 1 << 4
    A = 1 << 5
    D = 1 << 6
    PS = 1 << 7
    G = 1 << 8
    XD = 1 << 63


class Vector(IntEnum):
    """Exceptions (SDM 3A table 6-1)."""

    DE = 0
    DB = 1
    NMI = 2
    BP = 3
    OF = 4
    BR = 5
    UD = 6
    NM = 7
    DF = 8
    TS = 10
    NP = 11
    SS = 12
    GP = 13
    PF = 14
    MF = 16
    AC = 17
    MC = 18
    XM = 19
    VE = 20
    CP = 21


ERROR_CODE_VECTORS = frozenset({Vector.DF, Vector.TS, Vector.NP, Vector.SS, Vector.GP, Vector.PF, Vector.AC, Vector.CP})
"""The exceptions that push an error code."""


class PageFault(IntFlag):
    """The error code of #PF (SDM 3A 4.7)."""

    P = 1 << 0
    W = 1 << 1
    U = 1 << 2
    RSVD = 1 << 3
    I = 1 << 4  # noqa: E741 - the SDM's name of the bit


class Msr(IntEnum):
    """Model-specific registers (SDM volume 4 table 2-2; AMD APM 2 appendix A)."""

    IA32_TIME_STAMP_COUNTER = 0x10
    IA32_PLATFORM_ID = 0x17
    IA32_APIC_BASE = 0x1B
    IA32_FEATURE_CONTROL = 0x3A
    IA32_TSC_ADJUST = 0x3B
    IA32_SPEC_CTRL = 0x48
    IA32_PRED_CMD = 0x49
    IA32_BIOS_SIGN_ID = 0x8B
    MSR_PLATFORM_INFO = 0xCE
    IA32_MTRRCAP = 0xFE
    IA32_ARCH_CAPABILITIES = 0x10A
    MISC_FEATURES_ENABLES = 0x140
    IA32_SYSENTER_CS = 0x174
    IA32_SYSENTER_ESP = 0x175
    IA32_SYSENTER_EIP = 0x176
    IA32_MCG_CAP = 0x179
    IA32_MCG_STATUS = 0x17A
    IA32_MISC_ENABLE = 0x1A0
    IA32_DEBUGCTL = 0x1D9
    IA32_MTRR_PHYSBASE0 = 0x200
    IA32_MTRR_FIX64K_00000 = 0x250
    IA32_MTRR_FIX16K_80000 = 0x258
    IA32_MTRR_FIX16K_A0000 = 0x259
    IA32_MTRR_FIX4K_C0000 = 0x268
    IA32_MTRR_FIX4K_F8000 = 0x26F
    IA32_PAT = 0x277
    IA32_MTRR_DEF_TYPE = 0x2FF
    IA32_MC0_CTL = 0x400
    IA32_TSC_DEADLINE = 0x6E0
    X2APIC_ID = 0x802
    X2APIC_VERSION = 0x803
    X2APIC_TPR = 0x808
    X2APIC_EOI = 0x80B
    X2APIC_SIVR = 0x80F
    X2APIC_ISR0 = 0x810
    X2APIC_IRR0 = 0x820
    X2APIC_ESR = 0x828
    X2APIC_ICR = 0x830
    X2APIC_LVT_TIMER = 0x832
    X2APIC_LVT_LINT0 = 0x835
    X2APIC_LVT_ERROR = 0x837
    X2APIC_INIT_COUNT = 0x838
    X2APIC_CUR_COUNT = 0x839
    X2APIC_DIV_CONF = 0x83E
    X2APIC_SELF_IPI = 0x83F
    IA32_EFER = 0xC000_0080
    IA32_STAR = 0xC000_0081
    IA32_LSTAR = 0xC000_0082
    IA32_CSTAR = 0xC000_0083
    IA32_FMASK = 0xC000_0084
    IA32_FS_BASE = 0xC000_0100
    IA32_GS_BASE = 0xC000_0101
    IA32_KERNEL_GS_BASE = 0xC000_0102
    IA32_TSC_AUX = 0xC000_0103
    AMD_HWCR = 0xC001_0015


APIC_BASE_BSP = 1 << 8
APIC_BASE_EXTD = 1 << 10
APIC_BASE_ENABLE = 1 << 11
APIC_DEFAULT_PHYS_BASE = 0xFEE0_0000


class Apic(IntEnum):
    """Offsets of the local APIC's registers in its page (SDM 3A table 10-1); an x2APIC MSR is 0x800 + offset / 16."""

    ID = 0x20
    VERSION = 0x30
    TPR = 0x80
    APR = 0x90
    PPR = 0xA0
    EOI = 0xB0
    LDR = 0xD0
    DFR = 0xE0
    SIVR = 0xF0
    ISR = 0x100
    TMR = 0x180
    IRR = 0x200
    ESR = 0x280
    LVT_CMCI = 0x2F0
    ICR_LOW = 0x300
    ICR_HIGH = 0x310
    LVT_TIMER = 0x320
    LVT_THERMAL = 0x330
    LVT_PMC = 0x340
    LVT_LINT0 = 0x350
    LVT_LINT1 = 0x360
    LVT_ERROR = 0x370
    INIT_COUNT = 0x380
    CUR_COUNT = 0x390
    DIV_CONF = 0x3E0


class CpuidBit(NamedTuple):
    """Where CPUID tells of a feature: `register` ("eax" to "edx") of leaf and subleaf, and the bit's number."""

    leaf: int
    subleaf: int
    register: str
    bit: int


FEATURES: dict[str, CpuidBit] = {
    name: CpuidBit(leaf, subleaf, register, bit)
    for (leaf, subleaf, register), names in {
        (1, 0, "edx"): {
            "fpu": 0,
            "vme": 1,
            "de": 2,
            "pse": 3,
            "tsc": 4,
            "msr": 5,
            "pae": 6,
            "mce": 7,
            "cx8": 8,
            "apic": 9,
            "sep": 11,
            "mtrr": 12,
            "pge": 13,
            "mca": 14,
            "cmov": 15,
            "pat": 16,
            "pse36": 17,
            "clflush": 19,
            "mmx": 23,
            "fxsr": 24,
            "sse": 25,
            "sse2": 26,
            "htt": 28,
        },
        (1, 0, "ecx"): {
            "sse3": 0,
            "pclmulqdq": 1,
            "monitor": 3,
            "vmx": 5,
            "ssse3": 9,
            "fma": 12,
            "cx16": 13,
            "pcid": 17,
            "sse4_1": 19,
            "sse4_2": 20,
            "x2apic": 21,
            "movbe": 22,
            "popcnt": 23,
            "tsc_deadline": 24,
            "aes": 25,
            "xsave": 26,
            "osxsave": 27,
            "avx": 28,
            "f16c": 29,
            "rdrand": 30,
            "hypervisor": 31,
        },
        (7, 0, "ebx"): {
            "fsgsbase": 0,
            "tsc_adjust": 1,
            "bmi1": 3,
            "avx2": 5,
            "smep": 7,
            "bmi2": 8,
            "erms": 9,
            "invpcid": 10,
            "rdseed": 18,
            "adx": 19,
            "smap": 20,
            "clflushopt": 23,
            "clwb": 24,
            "sha": 29,
        },
        (7, 0, "ecx"): {"umip": 2, "pku": 3, "la57": 16, "rdpid": 22},
        (0x8000_0001, 0, "edx"): {
            "syscall": 11,
            "nx": 20,
            "pdpe1gb": 26,
            "rdtscp": 27,
            "lm": 29,
            "3dnowext": 30,
            "3dnow": 31,
        },
        (0x8000_0001, 0, "ecx"): {"lahf_lm": 0, "svm": 2, "abm": 5, "sse4a": 6},
        (0x8000_0007, 0, "edx"): {"invariant_tsc": 8},
    }.items()
    for name, bit in names.items()
}
"""CPUID feature bits by the names of the manuals, in lower case."""


class ExitReason(IntEnum):
    """VMX basic exit reasons (SDM 3D appendix C)."""

    EXCEPTION_OR_NMI = 0
    EXTERNAL_INTERRUPT = 1
    TRIPLE_FAULT = 2
    INIT_SIGNAL = 3
    STARTUP_IPI = 4
    IO_SMI = 5
    OTHER_SMI = 6
    INTERRUPT_WINDOW = 7
    NMI_WINDOW = 8
    TASK_SWITCH = 9
    CPUID = 10
    GETSEC = 11
    HLT = 12
    INVD = 13
    INVLPG = 14
    RDPMC = 15
    RDTSC = 16
    RSM = 17
    VMCALL = 18
    VMCLEAR = 19
    VMLAUNCH = 20
    VMPTRLD = 21
    VMPTRST = 22
    VMREAD = 23
    VMRESUME = 24
    VMWRITE = 25
    VMXOFF = 26
    VMXON = 27
    CONTROL_REGISTER_ACCESS = 28
    MOV_DR = 29
    IO_INSTRUCTION = 30
    RDMSR = 31
    WRMSR = 32
    ENTRY_FAILURE_GUEST_STATE = 33
    ENTRY_FAILURE_MSR_LOADING = 34
    MWAIT = 36
    MONITOR_TRAP_FLAG = 37
    MONITOR = 39
    PAUSE = 40
    ENTRY_FAILURE_MACHINE_CHECK = 41
    TPR_BELOW_THRESHOLD = 43
    APIC_ACCESS = 44
    VIRTUALIZED_EOI = 45
    GDTR_OR_IDTR_ACCESS = 46
    LDTR_OR_TR_ACCESS = 47
    EPT_VIOLATION = 48
    EPT_MISCONFIGURATION = 49
    INVEPT = 50
    RDTSCP = 51
    PREEMPTION_TIMER = 52
    INVVPID = 53
    WBINVD = 54
    XSETBV = 55
    APIC_WRITE = 56
    RDRAND = 57
    INVPCID = 58
    VMFUNC = 59
    ENCLS = 60
    RDSEED = 61
    PML_FULL = 62
    XSAVES = 63
    XRSTORS = 64

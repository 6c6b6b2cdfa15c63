"""The compiled module (csrc/bind/): addresses and sizes in by name, numbers out. Called by ops/ and compat/ alone.

An address is that of a tensor's first element, 0 where there is none; sizes are in elements. Calls that run a kernel
release the interpreter lock. The structs own nothing.
"""

# A line per argument would bury the functions.
# fmt: off

from typing import Any

# What C++ knows (csrc/bind/rules.cpp)

METRICS: dict[str, int]
DEGREES: dict[str, int]  # features times s > 0 lie s^degree times as far apart
NORMALISED: tuple[str, ...]  # metrics of unit rows
CENTRED: tuple[str, ...]  # whose features are centred before the products
BY_DIFFERENCE: tuple[str, ...]  # by |x|^2 + |y|^2 - 2 <x, y>, whose near pairs are taken by their differences
SUMMED: tuple[str, ...]  # sums over the features, without inner products
GRADS: dict[str, int]
# Bits that kernels of a GPU raise: bad_cost, forbidden, bad_mass, no_mass, sums, not_converged, overflow.
FLAGS: dict[str, int]
# Sentences by the names of FLAGS, in the order in which they are told: what comes first may bring about the last. Also
# bad_cost_or_label, which a GPU's bad_cost stands for, and class_cost, labels, range.
REFUSALS: dict[str, str]
PAD: int
BLOCK_ROWS: int  # of a plan's that a sweep takes together
PANEL_ROWS: int  # of which a thread makes the cost at a time, at most
ELEMENTS_PER_TASK: int  # of a sweep, below which a second thread costs more than it saves
OWN_PRODUCTS: int  # multiply-adds up to which our own matrix products are used
UNKNOWN_RATE: float  # of convergence of the implicit sweep, before it is measured

class Rules:
    """Limits of a dtype (csrc/sinkhorn/rules.h)."""

    least_mass: float  # masses up to this take no part
    sums_gap: float  # sums of masses may differ by this share of both
    safe_log: float  # |log| of a ratio up to which plain scaling is accurate
    range_limit: float  # |log u_t|, |log v_t| up to which the adjoint takes plain sums

def rules(f64: bool) -> Rules: ...
def adjoint_tolerance(f64: bool, tol: float) -> float: ...
def max_sweeps(max_iter: int) -> int: ...
def padded(size: int) -> int: ...
def sinkhorn_saved_size(n: int, m: int, max_iter: int, history: bool, unbalanced: bool = False) -> int: ...

# Module

def build_info() -> dict[str, Any]: ...
def set_threads(parallel_for: int, get_num_threads: int, limit: int, least_work: float = ...) -> None: ...
def thread_counts() -> tuple[int, int]: ...
def exp(f64: bool, level: str, x: int, y: int, count: int) -> None: ...
def is_one(f64: bool, x: int) -> bool: ...

# Costs from features (csrc/cost/features.h)

class Features:
    def __init__(
        self, *, f64: bool, metric: int, n: int, m: int, d: int, x: int, y: int, scale_x: int, scale_y: int,
        given_x: int = 0, given_y: int = 0, classes: int = 0, class_cost: int = 0, labels: int = 0,
        distance: int = 0, grad_class: int = 0,
    ) -> None: ...

def cost_centre(*, f64: bool, n: int, m: int, d: int, x: int, y: int, out_x: int, out_y: int) -> None: ...
def cost_scales(features: Features, *, scale_x: int, scale_y: int) -> str | None: ...
def cost_finish(features: Features, *, cost: int) -> None: ...
def cost_weigh(features: Features, *, cost: int, grad_cost: int, row_sums: int, column_sums: int) -> None: ...
def cost_set_apart(features: Features, *, distance: int, weights: int, grad_x: int, grad_y: int) -> None: ...
def cost_finish_gradient(features: Features, *, sums: int, of_y: bool, grad: int) -> None: ...
def cost_sum_gradient(features: Features, *, grad_cost: int, of_y: bool, grad: int) -> None: ...

# Sinkhorn (csrc/sinkhorn/entry.h)

class Problem:
    """One problem, or a batch of given costs (batch, n, m); with features one."""

    def __init__(
        self, *, f64: bool, n: int, m: int, reg: float, max_iter: int, tol: float, rho_a: float, rho_b: float,
        shifted: bool, cost: int, saved: int,
        batch: int = 1, a: int = 0, a_shared: bool = True, b: int = 0, b_shared: bool = True, init_f: int = 0,
        init_g: int = 0, relax: bool = False, history: bool = False, features: Features | None = None,
    ) -> None: ...

class Upstream:
    """Gradients that arrive at the outputs."""

    def __init__(self, *, value: int = 0, f: int = 0, g: int = 0) -> None: ...

def sinkhorn_forward(
    problem: Problem, *, save_plan: bool, f: int, g: int, value: int, dual: int, marginal_error: int, n_iter: int
) -> str | None: ...
def sinkhorn_adjoint(
    problem: Problem, upstream: Upstream, *, left: int, right: int, grad_a: int, grad_b: int, depth: int
) -> int: ...
def sinkhorn_adjoint_finish(
    problem: Problem, upstream: Upstream, *, depth: int, grad_cost: int, grad_a: int, grad_b: int,
    row_sums: int = 0, column_sums: int = 0,
) -> None: ...
def sinkhorn_implicit(
    problem: Problem, upstream: Upstream, *, grad_cost: int, grad_a: int, grad_b: int,
    row_sums: int = 0, column_sums: int = 0,
) -> bool: ...
def sinkhorn_envelope(problem: Problem, upstream: Upstream, *, grad_cost: int) -> None: ...
def sinkhorn_gradient_rows(
    problem: Problem, upstream: Upstream, *, grad: int, begin: int, end: int, row_sum: int, col_sum: int,
    grad_cost: int, row_sums: int, column_sums: int,
) -> None: ...
def loss_forward(
    problem: Problem, *, own_products: bool, save_plan: bool, f: int, g: int, value: int, dual: int,
    marginal_error: int, n_iter: int,
) -> str | None: ...
def loss_backward(
    problem: Problem, upstream: Upstream, *, grad: int, grad_a: int, grad_b: int, grad_x: int, grad_y: int
) -> bool: ...

class LossSettings:
    """What many calls of a loss between features share."""

    def __init__(
        self, *, f64: bool, metric: int, regularized: bool, reg: float, max_iter: int, tol: float, relax: bool,
        grad: int, rho_a: float, rho_b: float, shifted: bool,
    ) -> None: ...

def loss_and_gradient(
    settings: LossSettings, *, n: int, m: int, d: int, x: int, y: int, a: int, b: int, init_f: int, init_g: int,
    loss: int, marginal_error: int, n_iter: int, grad_x: int, grad_y: int,
) -> None | str | tuple[bool, bool, bool]: ...

# Ragged lists (csrc/sinkhorn/ragged.h)

class Ragged:
    """Problems of rows x_offsets[k] .. x_offsets[k + 1] of features that are those of all."""

    def __init__(
        self, *, features: Features, batch: int, x_offsets: int, y_offsets: int, reg: float, max_iter: int,
        tol: float, rho_a: float, rho_b: float, shifted: bool,
        a: int = 0, b: int = 0, init_f: int = 0, init_g: int = 0, relax: bool = False,
        history: bool = False, cost: int = 0, saved: int = 0,
    ) -> None: ...

def ragged_sizes(
    batch: int, x_offsets: int, y_offsets: int, max_iter: int, history: bool, unbalanced: bool = False,
) -> tuple[int, int]: ...
def ragged_forward(
    ragged: Ragged, *, save_plan: bool, f: int, g: int, value: int, dual: int, marginal_error: int, n_iter: int
) -> str | None: ...
def ragged_backward(
    ragged: Ragged, upstream: Upstream, *, grad: int, grad_x: int, grad_y: int, grad_a: int, grad_b: int
) -> bool: ...

# Sweeps over panels (csrc/sinkhorn/panel.h)

class Panels:
    def __init__(
        self, *, features: Features, reg: float, room: int, packed: int = 0, kept: int = 0, made: bool = False
    ) -> None: ...

class Relaxation:
    plain_first: int
    def __init__(self, wanted: bool, tol: float, last: int) -> None: ...
    def begin(self, t: int) -> bool: ...
    def watch(self, error: float) -> None: ...

def panels_columns(m: int) -> int: ...
def panels_packed_size(m: int, d: int) -> int: ...
def panels_pack(*, f64: bool, m: int, d: int, y: int, packed: int) -> None: ...
def panel_columns(panels: Panels, *, f: int, top: int, total: int) -> bool: ...
def panel_iterate(
    panels: Panels, *, relaxed: bool, damping: float, mass: int, g: int, f: int, sums: int
) -> None: ...
def panel_plan(panels: Panels, *, damping: float, f: int, g: int, alpha: int, row_value: int, first: int) -> None: ...
def panel_adjoint(panels: Panels, *, f: int, g: int, sigma: int, factor: int, d: int, sums: int) -> None: ...
def panel_adjoint_log(
    panels: Panels, *, f: int, g: int, share: int, g_before: int, inverse: int, fbar: int, sums: int
) -> None: ...
def panel_gradient(
    panels: Panels, *, f: int, g: int, alpha: int, weight: float, out: int, row_sums: int, column_sums: int,
    row_sum: int = 0, col_sum: int = 0, depth: int = 0, stride: int = 0, hist_before: int = 0, hist_f: int = 0,
    share_f: int = 0, hist_g: int = 0, share_g: int = 0, distance: int = 0,
) -> None: ...

# The label-transport loss (csrc/label_transport/params.h)

def label_transport_forward(
    *, f64: bool, n: int, k: int, student: int, student_stride: int, teacher: int, teacher_stride: int, target: int,
    ignore_index: int, label_smoothing: float, live_kappa: bool, mean: bool, loss: int, grad_student: int,
    grad_teacher: int, grad_stride: int,
) -> tuple[float, int, int]: ...

# Balanced assignments (csrc/assign/params.h)

class AssignRows:
    """Rows of scores, as they are."""

    def __init__(
        self, *, f64: bool, n: int, k: int, scores: int, score_type: int, score_stride: int, weight: int, rate: float
    ) -> None: ...

def assign_columns(rows: AssignRows, *, level: int, sum: int) -> None: ...
def assign_sweep(
    rows: AssignRows, *, level: int, scale: int, kept: int, kept_stride: int, made: bool, first: bool, sum: int,
    out: int, out_type: int, out_stride: int,
) -> tuple[int, int, float]: ...

# The doubly stochastic projection (csrc/doubly_stochastic/params.h)

def doubly_stochastic(
    *, f64: bool, batch: int, n: int, m: int, logits: int, upstream: int, n_iter: int, eps: float, softmax: bool,
    rows_first: bool, out: int,
) -> int: ...

# Sinkhorn divergences of samples (csrc/samples_loss/params.h)

def samples_look(
    *, f64: bool, batch: int, n: int, m: int, d: int, a: int, x: int, b: int, y: int,
) -> tuple[float, bool]: ...
def samples_forward(
    *, f64: bool, batch: int, n: int, m: int, d: int, a: int, x: int, b: int, y: int, p: int, eps: list[float],
    rho: float, debias: bool, potentials: bool, keep_costs: bool, loss: int, term_x: int, term_y: int, slope_x: int,
    slope_y: int,
) -> None: ...

# CUDA kernels, in builds that have them (csrc/bind/cuda.cpp): fields are written one by one

class CudaSinkhorn:
    """One batch of problems (csrc/sinkhorn/cuda_call.h, cuda.h)."""

    f64: bool
    device: int
    stream: int
    regime: int
    tune_threads: int
    tune_quads: int
    tune_grid: int
    own_barrier: bool
    clusters: bool
    n: int
    m: int
    batch: int
    max_iter: int
    a_stride: int
    b_stride: int
    reg: float
    tol: float
    rho_a: float
    rho_b: float
    shifted: bool
    first_row: int
    rows: int
    relax: bool
    history: bool
    last_f: int
    last_g: int
    kept_a: int
    kept_b: int
    shifts: int
    cost: int
    a: int
    b: int
    init_f: int
    hist_f: int
    hist_g: int
    log_f: int
    log_g: int
    f: int
    g: int
    alpha: int
    n_iter: int
    flags: int
    work: int
    value: int
    dual: int
    marginal_error: int
    n_iter_out: int
    value_weight: int
    grad_f: int
    grad_g: int
    df: int
    dg: int
    first: int
    grad_a: int
    grad_b: int
    grad_cost: int
    implicit: bool
    plan_only: bool
    tolerance: float
    max_sweeps: int

class CudaPanel:
    """One visit of a panel, or of all rows, beside the call of the problem."""

    sweep: int
    t: int
    groups: int
    row_groups: int
    tensor_cores: bool
    stop: int
    relaxed: int
    held: int
    values: int
    parts: int
    states: int
    row_value: int
    share: int

class CudaCost:
    """One cost from features (csrc/cost/cuda_call.h)."""

    f64: bool
    feature_type: int
    device: int
    stream: int
    metric: int
    batch: int
    n: int
    m: int
    d: int
    classes: int
    x: int
    y: int
    given_x: int
    given_y: int
    scale_x: int
    scale_y: int
    cost: int
    distance: int
    class_cost: int
    labels: int
    grad_cost: int
    order: int
    starts: int
    grad_class: int
    grad_x: int
    grad_y: int
    adds_to_y: bool
    sums_x: int
    sums_y: int
    marks: int

class CudaLabel:
    """One batch of logits (csrc/label_transport/cuda_call.h)."""

    f64: bool
    logit_type: int
    device: int
    stream: int
    n: int
    k: int
    student: int
    teacher: int
    student_stride: int
    teacher_stride: int
    target: int
    ignore_index: int
    label_smoothing: float
    live_kappa: bool
    loss: int
    grad_student: int
    grad_teacher: int
    grad_stride: int
    upstream: int
    upstream_stride: int
    counted: int
    total: int
    mean: bool

class CudaProjection:
    """One batch of matrices to project (csrc/doubly_stochastic/cuda_call.h)."""

    f64: bool
    element_type: int
    device: int
    stream: int
    batch: int
    n: int
    m: int
    n_iter: int
    logits: int
    upstream: int
    out: int
    eps: float
    softmax: bool
    rows_first: bool
    work: int

def cuda_project_work(call: CudaProjection) -> int: ...
def cuda_project(call: CudaProjection) -> None: ...
def cuda_sinkhorn_work(call: CudaSinkhorn) -> int: ...
def cuda_sinkhorn_fits_block(call: CudaSinkhorn) -> bool: ...
def cuda_sinkhorn_forward(call: CudaSinkhorn) -> None: ...
def cuda_sinkhorn_adjoint(call: CudaSinkhorn) -> None: ...
def cuda_sinkhorn_gradient(call: CudaSinkhorn) -> None: ...
def cuda_panel(call: CudaSinkhorn, panel: CudaPanel) -> None: ...
def cuda_streamed(call: CudaSinkhorn, visit: CudaPanel, features: CudaCost) -> None: ...
def cuda_stream_plan(features: CudaCost, tensor_cores: bool) -> tuple[bool, bool, int, int]: ...
def cuda_scales(call: CudaCost) -> None: ...
def cuda_cost(call: CudaCost) -> None: ...
def cuda_weigh(call: CudaCost) -> None: ...
def cuda_cost_marks(call: CudaCost) -> int: ...
def cuda_finish_gradient(call: CudaCost) -> None: ...
def cuda_label_transport(call: CudaLabel) -> None: ...
def cuda_label_total(call: CudaLabel) -> None: ...

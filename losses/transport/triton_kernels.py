# mypy: ignore-errors
"""The kernels of transport losses on a GPU, in Triton; `on_gpu.py` says what runs here and launches them.

Each says which function it does; tests hold the two equal. Sums are made in one order, whatever the device does
first: there are no atomic additions, and a result repeats bit by bit.

A problem is one cost matrix. Problems come group by group: student to teacher and, to debias, student to student and
teacher to teacher, numbered by `kind` in that order. `kinds` is how many of them a group has, and 1 for any two sets
of rows.

N source rows, M target rows, V columns, K rounds, R problems, S parts that the columns are cut into.
"""

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950216293335)  # as a float32 holds it, and what it leaves
_LOG2_E_REST = tl.constexpr(1.9259629911e-8)
_LOG_2 = tl.constexpr(0.6931471805599453)
_EXPONENT_OF_0 = tl.constexpr(-150.0)


@triton.jit
def _exp(x):
    """exp(x) for x <= 0; tl.exp rounds x · log₂e, by which a small result loses a digit or two."""
    x = tl.where(x < _EXPONENT_OF_0, _EXPONENT_OF_0, x)  # NaN stays
    power = x * _LOG2_E
    lost = tl.fma(x, _LOG2_E, -power) + x * _LOG2_E_REST
    return tl.exp2(power) * (1 + lost * _LOG_2)


@triton.jit
def softmaxes(
    student_ptr,
    teacher_ptr,
    p_ptr,
    q_ptr,
    student_stride,
    teacher_stride,
    rows,
    classes,
    temperature,
    BLOCK: tl.constexpr,
):
    """Do `softened.softmax` for the student's rows and for the teacher's: p (N, V) and q (N, V). A program a row."""
    row = tl.program_id(0).to(tl.int64)
    if row < rows:
        _softmax(student_ptr + row * student_stride, p_ptr + row * classes, classes, temperature, BLOCK)
    else:
        row -= rows
        _softmax(teacher_ptr + row * teacher_stride, q_ptr + row * classes, classes, temperature, BLOCK)


@triton.jit
def _softmax(logits_ptr, p_ptr, classes, temperature, BLOCK: tl.constexpr):
    offset = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, classes, BLOCK):
        here = start + offset
        logits = tl.load(logits_ptr + here, mask=here < classes, other=float("-inf")).to(tl.float32)
        largest = tl.maximum(largest, logits)  # passes over NaN, which the sum then shows
    largest = tl.max(largest, 0)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, classes, BLOCK):
        here = start + offset
        logits = tl.load(logits_ptr + here, mask=here < classes, other=float("-inf")).to(tl.float32)
        total += _exp(tl.div_rn(logits - largest, temperature))
    normaliser = 1 / tl.sum(total, 0)
    for start in range(0, classes, BLOCK):
        here = start + offset
        logits = tl.load(logits_ptr + here, mask=here < classes, other=float("-inf")).to(tl.float32)
        p = _exp(tl.div_rn(logits - largest, temperature)) * normaliser
        tl.store(p_ptr + here, p, mask=here < classes)


@triton.jit
def all_pairs(
    source_ptr,
    target_ptr,
    out_ptr,
    sources,
    targets,
    classes,
    kinds,
    problems,
    chunks,
    factor,
    SHARED: tl.constexpr,
    SIDE: tl.constexpr,
    STEP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Do `manhattan.overlap` (SHARED), or `manhattan.manhattan` times factor, for a part of the columns: (S, R, N, M).

    A program has a tile of SIDE x SIDE pairs and some chunks of columns. Every lane adds up columns of its own in
    float32, a chunk's worth, and only then are lanes added, and chunks in float64.
    """
    across = tl.cdiv(targets, SIDE)
    tiles = tl.cdiv(sources, SIDE) * across
    problem = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    part = tl.program_id(1)
    kind = problem % kinds
    group = (problem // kinds).to(tl.int64)
    row = tile // across * SIDE + tl.arange(0, SIDE)
    column = tile % across * SIDE + tl.arange(0, SIDE)
    # Kind 1 has the source on both sides, kind 2 the target: then both have as many rows.
    sources_ptr = source_ptr
    targets_ptr = target_ptr
    if kind == 1:
        targets_ptr = source_ptr
    if kind == 2:
        sources_ptr = target_ptr
    sources_ptr += (group * sources + row[:, None]) * classes
    targets_ptr += (group * targets + column[:, None]) * classes
    total = tl.zeros([SIDE, SIDE], tl.float64)
    for chunk in range(part * chunks, (part + 1) * chunks):
        lanes = tl.zeros([SIDE, SIDE, STEP], tl.float32)
        for start in range(chunk * CHUNK, tl.minimum((chunk + 1) * CHUNK, classes), STEP):
            here = start + tl.arange(0, STEP)[None, :]
            p = tl.load(sources_ptr + here, mask=(row[:, None] < sources) & (here < classes), other=0.0)
            q = tl.load(targets_ptr + here, mask=(column[:, None] < targets) & (here < classes), other=0.0)
            if SHARED:
                lanes += tl.minimum(p[:, None, :], q[None, :, :], propagate_nan=tl.PropagateNan.ALL)
            else:
                lanes += tl.abs(p[:, None, :] - q[None, :, :])
        total += tl.sum(lanes, 2).to(tl.float64)
    out_ptr += (part * problems + problem).to(tl.int64) * sources * targets
    place = row[:, None].to(tl.int64) * targets + column[None, :]
    inside = (row[:, None] < sources) & (column[None, :] < targets)
    tl.store(out_ptr + place, (total * factor).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def add_parts(parts_ptr, out_ptr, parts, numbers, BLOCK: tl.constexpr):
    """Add up what the parts of the columns came to, in float64."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for _ in range(parts):
        total += tl.load(parts_ptr + place, mask=place < numbers, other=0.0)
        parts_ptr += numbers
    tl.store(out_ptr + place, total.to(out_ptr.dtype.element_ty), mask=place < numbers)


@triton.jit
def _counted(share, kind):
    return tl.where(kind == 0, share, -0.5 * share)


@triton.jit
def scale(
    cost_ptr,
    source_ptr,
    target_ptr,
    plan_ptr,
    rows_ptr,
    columns_ptr,
    shares_ptr,
    error_ptr,
    sources,
    targets,
    kinds,
    epsilon,
    rounds,
    SIDE: tl.constexpr,
):
    """Do `rounds.scale`, a problem a program: plan (R, N, M), u (R, K, N) and v (R, K, M) after each round.

    And what `solve.TransportResult` says of it: the misplaced mass (R,), and the shares (R, N), times what they count
    in `batchwise.debiased_shares`.
    """
    problem = tl.program_id(0).to(tl.int64)
    group = problem // kinds
    n = tl.arange(0, SIDE)
    m = tl.arange(0, SIDE)
    inside = (n[:, None] < sources) & (m[None, :] < targets)
    place = problem * sources * targets + n[:, None] * targets + m[None, :]
    cost = tl.load(cost_ptr + place, mask=inside, other=0.0)
    kernel = tl.where(inside, _exp(tl.div_rn(-cost, epsilon)), 0.0)
    source = tl.load(source_ptr + group * sources + n, mask=n < sources, other=0.0)
    target = tl.load(target_ptr + group * targets + m, mask=m < targets, other=0.0)
    u = tl.zeros([SIDE], tl.float32)
    v = tl.full([SIDE], 1.0, tl.float32)
    for k in range(rounds):
        u = 1 / tl.where(n < sources, tl.sum(kernel * (target * v)[None, :], 1), 1.0)
        v = 1 / tl.where(m < targets, tl.sum(kernel * (source * u)[:, None], 0), 1.0)
        tl.store(rows_ptr + (problem * rounds + k) * sources + n, u, mask=n < sources)
        tl.store(columns_ptr + (problem * rounds + k) * targets + m, v, mask=m < targets)
    plan = (source * u)[:, None] * kernel * (target * v)[None, :]
    tl.store(plan_ptr + place, plan, mask=inside)
    share = _counted(tl.sum(plan * cost, 1) / tl.where(n < sources, source, 1.0), problem % kinds)
    tl.store(shares_ptr + problem * sources + n, share, mask=n < sources)
    misplaced = tl.sum(tl.abs(tl.sum(plan, 1) - source), 0) + tl.sum(tl.abs(tl.sum(plan, 0) - target), 0)
    tl.store(error_ptr + problem, misplaced)


@triton.jit
def scale_adjoint(
    pull_ptr,
    cost_ptr,
    source_ptr,
    target_ptr,
    plan_ptr,
    rows_ptr,
    columns_ptr,
    out_ptr,
    share_stride,
    sources,
    targets,
    kinds,
    pulled_kinds,
    epsilon,
    rounds,
    factor,
    SHARES: tl.constexpr,
    SIDE: tl.constexpr,
):
    """Do `rounds.scale_adjoint` over epsilon, a problem a program: dL/dcost (R, N, M) from dL/dplan (R, N, M).

    SHARES: from dL/d(a group's debiased shares), (N,) a group, to factor · dL/dcost with the share's own cost in it,
    of the first pulled_kinds kinds; that of a cloud with itself for both of its sides. Then N = M.
    """
    group = (tl.program_id(0) // pulled_kinds).to(tl.int64)
    kind = tl.program_id(0) % pulled_kinds
    problem = group * kinds + kind
    n = tl.arange(0, SIDE)
    m = tl.arange(0, SIDE)
    inside = (n[:, None] < sources) & (m[None, :] < targets)
    matrix = n[:, None] * targets + m[None, :]
    place = problem * sources * targets + matrix
    cost = tl.load(cost_ptr + place, mask=inside, other=0.0)
    plan = tl.load(plan_ptr + place, mask=inside, other=0.0)
    kernel = tl.where(inside, _exp(tl.div_rn(-cost, epsilon)), 0.0)
    source = tl.load(source_ptr + group * sources + n, mask=n < sources, other=1.0)
    target = tl.load(target_ptr + group * targets + m, mask=m < targets, other=1.0)
    if SHARES:
        share_pull = tl.load(pull_ptr + (group * sources + n) * share_stride, mask=n < sources, other=0.0)
        share_pull = _counted(share_pull, kind) / source
        direct = share_pull[:, None] * cost * plan
    else:
        direct = tl.load(pull_ptr + place, mask=inside, other=0.0) * plan
    column_pull = tl.sum(direct, 0)
    last_row_pull = tl.sum(direct, 1)  # only the last u stands in the plan itself
    collected = tl.zeros([SIDE, SIDE], tl.float32)
    rows_ptr += problem * rounds * sources + n
    columns_ptr += problem * rounds * targets + m
    for back in range(rounds):
        k = rounds - 1 - back
        u = tl.load(rows_ptr + k * sources, mask=n < sources, other=0.0)
        v = tl.load(columns_ptr + k * targets, mask=m < targets, other=0.0)
        v_before = tl.load(columns_ptr + tl.maximum(k - 1, 0) * targets, mask=m < targets, other=1.0)
        v_before = tl.where(k > 0, v_before, 1.0)
        column_part = column_pull * v
        row_part = (source * tl.sum(kernel * column_part[None, :], 1) * u - last_row_pull) * u
        last_row_pull = tl.zeros([SIDE], tl.float32)
        column_pull = target * tl.sum(kernel * row_part[:, None], 0) * v_before
        collected += (source * u)[:, None] * column_part[None, :]
        collected -= row_part[:, None] * (target * v_before)[None, :]
    pulled = (kernel * collected - direct) / epsilon
    if SHARES:
        pulled = factor * (pulled + share_pull[:, None] * plan)
        pulled = tl.where(kind == 1, pulled + tl.trans(pulled), pulled)
    tl.store(out_ptr + tl.program_id(0).to(tl.int64) * sources * targets + matrix, pulled, mask=inside)


@triton.jit
def pull_to_rows(
    pull_ptr,
    source_ptr,
    target_ptr,
    out_ptr,
    sums_ptr,
    sources,
    targets,
    classes,
    pull_row_stride,
    pull_column_stride,
    temperature,
    LOGITS: tl.constexpr,
    OWN: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Do `manhattan.distance_pull`, a program a tile of the result, (N, V) a group.

    OWN: a group has a second matrix of pulls, of its source with itself, whose pull is added. LOGITS: then go on
    through the softmax to the logits. For a row that is not in one tile (WHOLE), p · pull is as far as it goes, and
    its sum over each tile, (N, S): `finish_softmax` does the rest.
    """
    tiles = tl.cdiv(sources, ROWS)
    group = (tl.program_id(0) // tiles).to(tl.int64)
    row = (tl.program_id(0) % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row[:, None] < sources) & (here[None, :] < classes)
    place = (group * sources + row[:, None]) * classes + here[None, :]
    p = tl.load(source_ptr + place, mask=inside, other=0.0)
    first_ptr = pull_ptr + row * pull_row_stride
    if OWN:
        first_ptr += group * 2 * sources * targets
    else:
        first_ptr += group * sources * targets
    pulled = tl.zeros([ROWS, COLUMNS], tl.float32)
    target_ptr += group * targets * classes
    pulled = _pull_toward(
        pulled, p, first_ptr, target_ptr, row < sources, here, targets, classes, pull_column_stride
    )
    if OWN:
        own_ptr = first_ptr + sources * targets
        source_ptr += group * sources * classes
        pulled = _pull_toward(
            pulled, p, own_ptr, source_ptr, row < sources, here, sources, classes, pull_column_stride
        )
    if LOGITS:
        pulled *= p
        total = tl.sum(pulled, 1)
        if WHOLE:
            pulled = tl.div_rn(pulled - p * total[:, None], temperature)
        else:
            sums_ptr += (group * sources + row) * tl.num_programs(1) + tl.program_id(1)
            tl.store(sums_ptr, total, mask=row < sources)
    tl.store(out_ptr + place, pulled.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _pull_toward(pulled, p, pull_ptr, target_ptr, rows_inside, here, targets, classes, stride):
    """Return pulled + Σ_m pull_nm · sign(p_nv − q_mv)."""
    for _ in range(targets):
        q = tl.load(target_ptr + here, mask=here < classes, other=0.0)
        pull = tl.load(pull_ptr, mask=rows_inside, other=0.0)[:, None]
        difference = p - q[None, :]
        # Neither above nor below is 0, or NaN, which stays.
        level = difference * pull
        pulled += tl.where(difference > 0, pull, tl.where(difference < 0, -pull, level))
        target_ptr += classes
        pull_ptr += stride
    return pulled


@triton.jit
def finish_softmax(
    part_ptr,
    sums_ptr,
    p_ptr,
    out_ptr,
    classes,
    parts,
    temperature,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return (part − p · its row's sum) / temperature, (N, V), where part is p · pull and its sums are (N, S)."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, PARTS)
    total = tl.sum(tl.load(sums_ptr + row * parts + place, mask=place < parts, other=0.0), 0)
    here = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    part = tl.load(part_ptr + row * classes + here, mask=here < classes, other=0.0)
    p = tl.load(p_ptr + row * classes + here, mask=here < classes, other=0.0)
    pulled = tl.div_rn(part - p * total, temperature)
    tl.store(out_ptr + row * classes + here, pulled.to(out_ptr.dtype.element_ty), mask=here < classes)

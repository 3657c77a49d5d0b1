"""Which ATen operations a stranger may run on this Node, and why the others may not. Knows no torch.

Forward operations only: autograd runs in the Worker, so no `*_backward` kernel is ever named by a client.
An operation enters this list after it was fuzzed; what crashes on forged arguments stands behind an
argument guard (ops/guards.py).
"""

from __future__ import annotations

_ALLOWED = """
    _adaptive_avg_pool2d _cdist_forward _conj _ctc_loss(Tensor) _embedding_bag _fft_r2c _foreach_abs
    _foreach_add(List,Scalar,ScalarList) _foreach_add_(List,Scalar,ScalarList,Tensor)
    _foreach_addcdiv_(Scalar,ScalarList,Tensor) _foreach_addcmul(Scalar) _foreach_addcmul_(Scalar,ScalarList,Tensor)
    _foreach_clamp_max_(Scalar) _foreach_clamp_min_(Scalar) _foreach_copy_ _foreach_div_(List,Scalar,ScalarList)
    _foreach_lerp_(List,Scalar,ScalarList) _foreach_maximum_(List) _foreach_mul(List,Scalar,ScalarList)
    _foreach_mul_(List,Scalar,ScalarList,Tensor) _foreach_neg _foreach_norm(Scalar) _foreach_pow(List,ScalarAndTensor)
    _foreach_reciprocal_ _foreach_rsqrt_ _foreach_sign_ _foreach_sqrt _foreach_sqrt_ _foreach_sub(List)
    _foreach_sub_(List,Scalar) _foreach_zero_ _fused_adagrad_ _fused_adam_ _fused_adamw_ _fused_sgd_
    _linalg_check_errors _linalg_det
    _linalg_eigh _linalg_slogdet _linalg_solve_ex _linalg_svd _log_softmax _native_batch_norm_legit _neg_view
    _pack_padded_sequence _prelu_kernel _safe_softmax _scaled_dot_product_flash_attention_for_cpu _softmax _to_copy
    _transformer_encoder_layer_fwd _unique2 _unsafe_view abs abs_ acos acosh adaptive_max_pool2d add(Scalar,Tensor)
    add_(Scalar,Tensor) addcdiv_ addcmul addcmul_ addmm addmv affine_grid_generator alias all(default,dim,dims) amax
    amin aminmax any(default,dim,dims) argmax argmin asin asinh atan atan2 atanh avg_pool2d avg_pool3d baddbmm
    bernoulli bernoulli_(float) binary_cross_entropy binary_cross_entropy_with_logits bincount
    bitwise_and(Scalar,Tensor) bitwise_and_(Tensor) bitwise_not bitwise_or(Scalar,Tensor) bitwise_or_(Tensor)
    bitwise_xor(Scalar,Tensor) block_diag bmm bucketize(Tensor) cat ceil ceil_ celu clamp(Tensor,default)
    clamp_(Tensor,default) clamp_max(Tensor,default) clamp_max_ clamp_min(Tensor,default) clamp_min_(Tensor,default)
    clone col2im constant_pad_nd convolution copy_ copysign(Tensor) cos cosh count_nonzero(default,dim_IntList)
    cummax cumprod cumprod_ cumsum detach diag_embed diagonal digamma div(Scalar,Scalar_mode,Tensor,Tensor_mode)
    div_(Scalar,Scalar_mode,Tensor,Tensor_mode) dot elu embedding empty_like eq(Scalar,Tensor) erf erfc erfinv exp
    exp2 exp_ expand expm1 fill_(Scalar,Tensor) flip floor floor_ floor_divide(Scalar,default) fmax fmin
    fmod(Scalar,Tensor) frac full_like gather ge(Scalar,Tensor) gelu glu grid_sampler_2d gt(Scalar,Tensor)
    hardshrink hardsigmoid hardswish hardtanh heaviside histc histogram(bin_ct) huber_loss hypot im2col
    index(Tensor) index_add index_add_ index_copy index_fill(int_Scalar) index_put index_put_ index_select isinf
    isnan isneginf isposinf kthvalue lcm le(Scalar,Tensor) leaky_relu lerp(Scalar,Tensor) lerp_(Scalar,Tensor)
    lgamma lift_fresh_copy linalg_cholesky_ex linalg_cross linalg_inv_ex linalg_lstsq linalg_lu_factor_ex
    linalg_matrix_exp linalg_pinv(atol_rtol_tensor) linalg_qr linalg_vector_norm log log10 log1p log2 log_
    log_sigmoid_forward logaddexp logaddexp2 logcumsumexp logical_and logical_not logical_not_ logical_or
    logical_xor logsumexp lt(Scalar,Tensor) masked_fill(Scalar,Tensor) masked_fill_(Scalar,Tensor) masked_scatter
    masked_select max(default,dim) max_pool2d_with_indices max_pool3d_with_indices maximum(default,out)
    mean(default,dim) median(default,dim) min(default,dim) minimum mish mkldnn_rnn_layer mm mode mse_loss
    mul(Scalar,Tensor) mul_(Scalar,Tensor) multi_margin_loss multinomial mv nan_to_num nanmedian(default,dim) nansum
    native_batch_norm native_dropout native_group_norm native_layer_norm ne(Scalar,Tensor) neg neg_ new_empty
    new_empty_strided new_full new_ones new_zeros nll_loss2d_forward nll_loss_forward nonzero norm(ScalarOpt_dim)
    normal_ ones_like permute pixel_shuffle pixel_unshuffle pow(Scalar,Tensor_Scalar,Tensor_Tensor)
    pow_(Scalar,Tensor) prod(default,dim_int) rand_like randint_like randn_like random_(from) reciprocal reciprocal_
    reflection_pad2d relu relu_ remainder(Scalar,Scalar_Tensor,Tensor) renorm repeat replication_pad2d roll
    round(decimals,default) rrelu_with_noise rsqrt rsqrt_ rsub(Scalar,Tensor) scatter(src,value) scatter_add
    scatter_add_ scatter_reduce(two) searchsorted(Tensor) select(int) sgn sigmoid sigmoid_ sign signbit silu sin
    sinc sinh slice(Tensor) smooth_l1_loss soft_margin_loss softplus softshrink sort(default,stable) split(Tensor)
    split_with_sizes sqrt sqrt_ squeeze(default,dim,dims) squeeze_(default,dim,dims) stack std(correction)
    std_mean(correction) sub(Scalar,Tensor) sub_(Scalar,Tensor) sum(default,dim_IntList) t t_ take tan tanh tanh_
    threshold topk trace transpose(int) transpose_ tril triu trunc unbind(int) unfold uniform_ unique_consecutive
    unsafe_split(Tensor) unsqueeze unsqueeze_ upsample_bilinear2d upsample_nearest2d var(correction)
    var_mean(correction) view(default,dtype) where(self) xlogy(Tensor) zero_ zeros_like
"""

# The rest of torch's operator database, by what it is about.
_ALLOWED += """
    addbmm addcdiv addr angle bitwise_left_shift(Tensor) bitwise_right_shift(Tensor) complex copysign(Scalar) cummin
    deg2rad dist fill(Scalar) frexp(Tensor) gcd i0 igamma igammac ldexp(Tensor) logit mvlgamma nextafter polar
    polygamma rad2deg vdot
"""
_ALLOWED += """
    special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1
    special_chebyshev_polynomial_t special_chebyshev_polynomial_u special_chebyshev_polynomial_v
    special_chebyshev_polynomial_w special_entr special_erfcx special_hermite_polynomial_h
    special_hermite_polynomial_he special_i0e special_i1 special_i1e special_laguerre_polynomial_l
    special_legendre_polynomial_p special_log_ndtr special_modified_bessel_i0 special_modified_bessel_i1
    special_modified_bessel_k0 special_modified_bessel_k1 special_ndtri special_scaled_modified_bessel_k0
    special_scaled_modified_bessel_k1 special_shifted_chebyshev_polynomial_t special_shifted_chebyshev_polynomial_u
    special_shifted_chebyshev_polynomial_v special_shifted_chebyshev_polynomial_w special_spherical_bessel_j0
    special_xlog1py special_zeta
"""
# linear algebra and Fourier transforms
_ALLOWED += """
    _conj_physical _fft_c2c _fft_c2r cholesky cholesky_inverse cholesky_solve geqrf linalg_eig
    linalg_householder_product linalg_ldl_factor_ex linalg_ldl_solve linalg_lu linalg_lu_solve
    linalg_solve_triangular lu_unpack ormqr triangular_solve
"""
# indices, pieces, and the copies that torch makes in place of views
_ALLOWED += """
    _chunk_cat _euclidean_dist alias_copy channel_shuffle diagonal_copy diagonal_scatter expand_copy
    index_fill(int_Tensor) index_reduce isin(Tensor_Tensor) linspace(Scalar_Tensor,Tensor_Scalar,Tensor_Tensor)
    logspace(Scalar_Tensor,Tensor_Scalar,Tensor_Tensor) narrow_copy nonzero_static permute_copy put
    repeat_interleave(Tensor) rot90 scatter(reduce,value_reduce) searchsorted(Scalar) select_scatter slice_scatter
    split_with_sizes_copy squeeze_copy(default,dim) t_copy transpose_copy(int) unbind_copy(int) unfold_copy
    unique_dim unsqueeze_copy unsafe_split_with_sizes view_as_complex view_as_real view_copy
"""
# random numbers and histograms
_ALLOWED += """
    _histogramdd_bin_edges _histogramdd_from_bin_cts _histogramdd_from_bin_tensors cauchy_ exponential_ geometric_
    histogram(bins_tensor) log_normal_ normal(Tensor_Tensor,Tensor_float) randint_like(low_dtype)
"""
# layers
_ALLOWED += """
    _adaptive_avg_pool3d _batch_norm_with_update _native_batch_norm_legit(no_stats) _pdist_forward _trilinear
    _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d adaptive_max_pool3d embedding_renorm_ fractional_max_pool2d fractional_max_pool3d
    grid_sampler_3d max_unpool2d max_unpool3d multilabel_margin_loss_forward reflection_pad1d reflection_pad3d
    replication_pad1d replication_pad3d upsample_bicubic2d upsample_linear1d upsample_nearest1d upsample_nearest3d
    upsample_trilinear3d
"""


def _expand(block: str) -> frozenset[str]:
    names: set[str] = set()
    for item in block.split():
        base, _, overloads = item.partition("(")
        names.update(f"aten.{base}.{overload}" for overload in overloads.rstrip(")").split(",") if overload)
        if not overloads:
            names.add(f"aten.{base}.default")
    return frozenset(names)


ALLOWED: frozenset[str] = _expand(_ALLOWED)
"""Full names, `aten.add.Tensor`, of the operations that run."""

_REASONS = (
    (("set_", "resize", "as_strided", "_reshape_alias", "set_data"), "it reaches outside of a tensor's own storage"),
    (("_backward",), "gradients are computed where the tensor lives: use .backward() or torch.autograd.grad"),
    (("_local_scalar_dense", "equal", "is_nonzero", "allclose", "item"), "its result is a value: use .get()"),
    (("sparse", "quantize", "nested"), "only dense (strided) tensors live on a Node"),
    (("from_file",), "it reads files of the Node"),
    (("_unsafe", "segment_reduce"), "it takes indices and lengths as they come and reads past the end of its input"),
    (("hash_tensor",), "its result has a dtype that no Node keeps"),
)


def why_refused(name: str) -> str:
    """The reason that an operation off the list is refused, for the text of an error."""
    if not name.startswith("aten."):
        return "it is no operation of ATen, the library that Nodes have"
    base = name.split(".")[1] if name.count(".") == 2 else name
    for parts, reason in _REASONS:
        if any(part in base for part in parts):
            return reason
    return "it is not on the list of operations that Nodes run"


STRINGS: frozenset[str] = frozenset(
    {
        "none", "tanh", "floor", "trunc", "sum", "prod", "mean", "amax", "amin", "left", "right",
        "reduced", "complete", "r", "ij", "xy", "gels", "gelsy", "gelsd", "gelss", "gesvd", "gesvdj", "gesvda",
        "L", "U", "inv", "add", "multiply", "linalg.inv", "linalg.cholesky", "torch.linalg.solve",
        "torch.linalg.lu_factor", "torch.linalg.ldl_factor",
    }
)  # fmt: skip
"""The only texts that an operation may take as an argument (modes and the like)."""

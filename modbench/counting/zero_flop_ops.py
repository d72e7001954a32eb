"""Ops without a matmul, in addition to those that PyTorch tags as pointwise or declares to be views:
reductions, indexing, copies, factories, normalisations, losses, optimizers, and their backward passes.
"""

import re

import torch
from torch._ops import OpOverload

#: Stems of names in ``aten``: without underscores at the ends, without a suffix of `_SUFFIX`, and with
#: ``nd`` for one to three dimensions.
_ATEN = """
_cdist_backward abs adaptive_avg_poolnd adaptive_max_poolnd all allclose amax amin aminmax
amp_foreach_non_finite_check_and_unscale amp_update_scale any arange argmax argmin argsort as_strided
as_strided_scatter assert_async assert_scalar assert_tensor_metadata avg_poolnd bartlett_window
batch_norm batch_norm_gather_stats batch_norm_gather_stats_with_counts batch_norm_no_update
batch_norm_stats batch_norm_update_stats batch_norm_with_update bernoulli binary_cross_entropy
binary_cross_entropy_with_logits bincount binomial blackman_window block_diag bucketize cat cauchy
channel_shuffle chunk_cat clone coalesce coalesced col2im complex conj conj_physical constant_pad_nd
convert_indices_from_coo_to_csr convert_indices_from_csr_to_coo copy copy_from copy_from_and_resize
copysign count_nonzero ctc_loss cudnn_batch_norm cudnn_ctc_loss cudnn_grid_sampler
cudnn_init_dropout_state cudnn_rnn_flatten_weight cummax cummax_helper cummin cummin_helper cumprod
cumsum dense_dim dequantize detach diag_embed diagonal diagonal_scatter dimI dimV dirichlet_grad dist
dropout efficientzerotensor elu embedding embedding_dense embedding_renorm empty empty_like
empty_permuted empty_strided eq equal exponential eye fake_quantize_learnable_per_channel_affine
fake_quantize_learnable_per_tensor_affine fake_quantize_per_channel_affine_cachemask
fake_quantize_per_tensor_affine_cachemask fake_quantize_per_tensor_affine_cachemask_tensor_qparams
fft_fftfreq fft_rfftfreq fill flip floor_divide fractional_max_poolnd from_file full full_like
functional_assert_async functional_assert_scalar functional_sym_constrain_range
functional_sym_constrain_range_for_size fused_adagrad fused_dropout fused_moving_avg_obs_fq_helper
fused_rms_norm fused_sdp_choice fused_sgd gather gcd ge gelu geometric glu glu_backward_jvp glu_jvp
grid_sampler_nd grid_sampler_nd_cpu_fallback gt hamming_window hann_window hardshrink hardsigmoid
hardswish hardtanh has_same_storage_numel hash_tensor heaviside histc histogram histogramdd_bin_edges
histogramdd_from_bin_cts histogramdd_from_bin_tensors huber_loss im2col index index_add index_copy
index_fill index_put index_select int_repr irshift is_all_true is_any_true is_coalesced is_pinned
is_same_size is_set_to isin isinf isnan item jagged_to_padded_dense kaiser_window kl_div kthvalue
lazy_clone lcm le leaky_relu lift linalg__powsum linalg_check_errors linalg_cross linalg_vector_norm
linspace local_scalar_dense log_normal log_sigmoid log_softmax logcumsumexp logspace logsumexp lt
masked_fill masked_scale masked_scatter masked_select masked_softmax max max_poolnd
max_poolnd_with_indices max_unpoolnd mean median min mish mode mse_loss multi_margin_loss
multilabel_margin_loss multinomial nanmedian nansum native_batch_norm native_batch_norm_legit
native_dropout native_group_norm native_layer_norm native_norm ne
nested_compute_contiguous_strides_offsets nested_from_padded nested_from_padded_and_nested_example
nested_from_padded_tensor nested_get_jagged_dummy nested_get_lengths nested_get_max_seqlen
nested_get_min_seqlen nested_get_offsets nested_get_ragged_idx nested_select nested_sum
nested_tensor_from_mask nested_tensor_from_mask_left_aligned nested_tensor_from_tensor_list
nested_tensor_size nested_tensor_softmax_with_shape nested_tensor_storage_offsets nested_tensor_strides
new_empty new_empty_strided new_full new_ones new_zeros new_zeros_with_same_feature_meta nll_loss
nll_lossnd nnz nonzero nonzero_static norm normal one_hot ones ones_like pack_padded_sequence
padded_dense_to_jagged pdist pin_memory pixel_shuffle pixel_unshuffle poisson poisson_nll_loss polar
prelu_kernel print prod put quantize_per_channel quantize_per_tensor quantize_per_tensor_dynamic rand
rand_like randint randint_like randn randn_like random randperm range record_stream reflection_padnd
renorm repeat repeat_interleave replication_padnd requires_grad resize resize_as resize_as_sparse
resize_output roll rot90 rrelu_with_noise rsub sample_dirichlet scalar_tensor scatter scatter_add
searchsorted segment select select_scatter set slice slice_scatter smooth_l1_loss soft_margin_loss
softmax softplus softshrink sort sparse_compressed_tensor sparse_compressed_tensor_with_dims
sparse_coo_tensor sparse_coo_tensor_with_dims sparse_coo_tensor_with_dims_and_tensors sparse_csr_prod
sparse_csr_sum sparse_dim sparse_log_softmax sparse_mask sparse_mask_projection sparse_resize
sparse_resize_and_clear sparse_softmax sparse_sum spdiags squeeze stack standard_gamma
standard_gamma_grad std std_mean sum sym_constrain_range sym_constrain_range_for_size sym_numel
sym_size sym_storage_offset sym_stride t take thnn_fused_gru_cell thnn_fused_lstm_cell threshold
to_dense to_mkldnn to_padded_tensor to_sparse to_sparse_bsc to_sparse_bsr to_sparse_csc to_sparse_csr
topk trace transform_bias_rescale_qkv transpose tril tril_indices triu triu_indices unfold uniform
unique unique2 unique_consecutive unique_dim unique_dim_consecutive unsafe_index unsafe_index_put
unsafe_masked_index unsafe_masked_index_put_accumulate unsafe_split unsafe_split_with_sizes unsafe_view
unsqueeze upsample_bicubicnd upsample_bicubicnd_aa upsample_bilinearnd upsample_bilinearnd_aa
upsample_linearnd upsample_nearest_exactnd upsample_nearestnd upsample_trilinearnd
validate_compressed_sparse_indices validate_sparse_coo_tensor_args value_selecting_reduction var
var_mean weight_norm_interface xlogy zero zeros zeros_like
"""
_SUFFIX = re.compile(r"(_(backward|forward|functional|impl|data|no_training|reduce|elemt))+$")

FREE = frozenset(_ATEN.split())
# The ``prims`` of PyTorch's decompositions are elementwise.
FREE_PREFIXES = ("aten::_foreach_", "aten::_fused_adam", "prim::", "prims::", "profiler::")
NOT_FREE_PREFIXES = ("prims::fft_", "prims::svd")


def is_free(func: OpOverload) -> bool:
    """Return True if an op is known to contain no matmul: it is pointwise, a view, or listed."""
    if torch.Tag.pointwise in func.tags or func.is_view:
        return True
    name = func._schema.name
    if name.startswith(FREE_PREFIXES) and not name.startswith(NOT_FREE_PREFIXES):
        return True
    space, _, plain = name.partition("::")
    if space == "aten":
        stem = re.sub(r"[123]d(?=_|$)", "nd", _SUFFIX.sub("", plain.strip("_")))
        if {plain, stem} & FREE or plain.endswith("_copy"):  # the copy of a view
            return True
    # The tag is missing from overloads that write into an argument.
    packet = func.overloadpacket
    return any(torch.Tag.pointwise in getattr(packet, kind).tags for kind in packet.overloads())

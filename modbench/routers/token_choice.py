"""Token choice: each token goes to the k experts that score it highest, y = sum_i g_i E_i(x) over them
(Shazeer et al. 2017, equation 1).

Presets, by their papers' equations (options.py has the numbers):

``switch``       Fedus et al. 2021: softmax scores, one expert, its score the gate (1 and 2); no more than
                 tokens / experts * capacity factor per expert, the rest dropped (3); balance loss (4 to 6).
``mixtral``      Jiang et al. 2024, section 2.1: a softmax over the two highest logits, which is the
                 softmax over all, renormalised.
``olmoe``        Muennighoff et al. 2024: 8 of 64, gates not renormalised (1), dropless; balance loss (3)
                 and z-loss (section 4.1.7; Zoph et al. 2022, equation 5).
``deepseek_v3``  DeepSeek-AI 2024: sigmoid scores (15), renormalised (13), a shared expert (12), a bias in
                 the choice alone (16), a balance loss per sequence (17 to 20), 4 of 8 groups by the sum of
                 their K_r / M best experts (section 2.1.2), gates scaled by 2.5 (the released
                 configuration).
"""

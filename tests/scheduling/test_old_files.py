"""A batcher of version 1, without rows and in another order of the plan, still goes on the same."""

import base64
import zlib

import numpy as np

from llmds_nb import ContinuousBatcher, KVCache
from llmds_nb.scheduling.kernels import continuous as c

# By the release before version 2: KVCache(16, 4, key=b"k") with a quota of 3 for the salt "q", and
# ContinuousBatcher(cache, policy="fcfs", max_running=4, max_step_tokens=15). Of its five requests
# three are in a step, where one was cancelled since; two wait.
FILE = """
c-rmSO>7%!9mnxFNz=5=ZVOx9--
3BxOn2TrlZ6HCf&d9=FG##3k(oN<*3|L1o^iLO>J0=J1P3l44jhpXNZdFej!1ArtA!&g?SUf*?O`QA%kw-lj-
4kSJLRdn%j)})+R4l_|KB|GJkLz(q~ANgqTH>wT8Bv<AH;dwYSnk{)_c9fgRIrRTHmSL^+r9*hog2r8YW`@nY5pG`=fM}Jss!m>&
Z~GUr*u#@x@O4?q0nei-UXhoo(^;L3$W>`<dL^-
QBB;FB;o>^`<Si)_!AK9P1XxTuW~4{e8J}klz`oh`oBJm&Umr6elIOy6wE1_KT+8a8w??oe$&kio>{nEh#RjqOv=OSJPg3;GR5kB
e_%52Um;o8@F27^|-iTf7I*AV~6qWR&p!p=c>|@hx)BSTt?f0Iv}pw8gx}}Y<WPox3ccHRFbETjBj4`WiU)S-
P`hF!*2hYJT8Vcxi`LEmM4Q&p591`8rzo*H%G~6Jeut^EBdqRSi%+2E%BFA3|Z2NN4>n2_0m>ZZ;i?JblAOCbXDyR(q6Y+jzg#25
e2FnS==kHu&Yj+njAS>_Kah$s+&x#Jm%@=sV?41hFLjzD(Jbmo0sFT>+RnY%SbGo_Kj?Gm`$yuC&U^mhQqQVH;B}z6fN2W6$h`Ud
2xDZIiWw*AQ!l7al9~SM!pl;lQubXYSJ7#@H{{8y{Wcx4yU39Y1&g!QE2;7WZ6@l%95KZ$+A7)i^AqqnV4JI6nH`4*}fa8mUPrt9
d?^d-
|{TqQr+rwhgm+o7{ajW`gSoXSxc>?p6Y{VJ5ke(f~J~?UYsZWb~iauH0Z@@<Q=!^1h(tBR=FaR!$F=L6gO|#Rx^m)qjh&QX0GG9V
bit(Z_+kQ#5ODX?s}f%xj`6Annge2;?C5ShNFJJoNN)}hPG#U#nS1e#T+_fP@0Zsx#}8Ix9&uCU^%Yk$R&~`aZjucabjdQJxeUx$
uf~IF7@gVCwwvR<k|AMuJ7!M2iCUt8+G-
9OFNw`$;BEIYg}|A+&{_?Yo|Ix+<SO3LIyN^F>{j?IcW1@PKL<(Mqt^&Bt$Huxm~em#K?q(?b>0{8M(6N3`sQOW@N2Ma9!1t=|xx
_<XKTLD@uekyudC-=4f5sZ;nc6G{s7GWR6_M)e&xE#;B-
Tkq`xHrjM5VoSw`I5#^0$B;KYnWb$;(8DMKhj0})5;Z#idAXO*%4ab|A6<UqZ5-
*KOR`JwTM_IE*NM%ft%18CS#^)%am?rg5&lwtjW`dZe(6S?E@)Q(r_+vq?bL@8PU{;g}(WB%mzB))eIF3`9B;G&PR8qG;uS+vhWc
`U0@jYZtf5dmG%AmlXzA^E9&b_Z$vn3NmPUxveV#X7GEM!(sWUWjn7V_j<(satx&p!L51<OVTs2K5<xVPQ^&5xh|+Gqdv-
4}lQ{P(@=XMd=z9Jf|($H!mP+Sj%HS4%H{{>zX3VCU*DH=g?GcfS6^mtLwmZ&ll0sj#TM>O6AEC70aSd+wIjzPjLg|IpscRqyR8F
Khi+U+`Yny`o)5@9&uf_5aqczv%o$<G5j1f7Y;m)3E-WVf}f-
`U{5jTZZ+I7}h^(Sbx#5{*qz+n+)sUY*_!8Vf|&p`nMR?ztyn*ZHD!4H>`h$Vf{M|>)&Nq|8B$j_ZZf{*RcM5hV|Qq_3t;VuN&5X
z_9*<hV>sZtpBiK{YMPzKWbS2F~j=D4eLK{Sl=+L|Ab-v6~p=`4C^h!dfTwxF|2nD>pjDI-
>^O~tZy3Dhlcf$Vf~I_{ga0EpERuhlwti-hV`E|tUv9~33R9Z+;!q}cJ27*?5fY}m;T55scE^NDYxT)Cw-
&bp4IlpZvNt%fBxssfA^R5E1loJ_@8fI{M-wF@BDS|PhY+Kt7pFQ_`kmJ>#Fg4rQ-M-l|HYvC9N}U**vuCt-QwfxAKtg4*&oF000
00005Bm|My(=`?1=6=8k`FyXgP5j&s+T3IG5A000000000000000000000000000000000000000000000000000000000000000
000000000000000000000000000000000000000000000000002M9JO-0T5i`)S+}Lt>)S=nRP5KZer%T8S4(=1etcEy-$H-
<$&(La9JdziSB>kq|N1=C9&-O{3-
(tR^nbOge%!yRe*VaR?)A|BHSN6BhdlnPhW%gH>NYFRJMkPnp#E<zXkWDcS1O+WwNt*Y*0uM@M!7w!_3vD{Jzs7wXwU1Va(j8|db
K(0>oo7As`Xl%Gw-IkYfH*qf55pb+I&6e{%*`!cP9NkyQJLBCFP!5QttUB<z84)?$(lWA6ZiFqf5%YxTM^w^GtIA{QrK&tonSZKm
TVKE&u=k003T-&+hm0NB=pq{&RBq`F`V#bpOJC0oShxlK
"""
# What that release makes of it: by id the first position, the tokens and their slots in each step,
# and the ids that end with it.
STEPS = [
    (
        {
            0: (0, 12, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
            1: (0, 1, [12]),
            2: (0, 1, [16]),
            3: (0, 1, [20]),
        },
        [],
    ),
    ({0: (12, 1, [16]), 1: (1, 1, [13]), 3: (1, 1, [21]), 4: (7, 1, [27])}, [1]),
    ({0: (13, 1, [17]), 3: (2, 1, [22]), 4: (8, 1, [12])}, [0, 3]),
    ({4: (9, 1, [13])}, [4]),
]


def loaded():
    data = zlib.decompress(base64.b85decode("".join(FILE.split())))
    return ContinuousBatcher.from_bytes(data, clock=lambda: 10**9)


def test_it_computes_the_same_in_the_same_places():
    batcher, plan = loaded(), None
    batcher.check()
    for rows, ended in STEPS:
        plan = batcher.step() if plan else batcher.plan
        slots = iter(plan.slots.tolist())
        columns = (column.tolist() for column in plan[:3])
        found = {
            id_: (start, n, [next(slots) for _ in range(n)])
            for id_, start, n in zip(*columns, strict=True)
        }
        assert found == rows
        live = [id_ for id_ in plan.seq_ids.tolist() if id_ in batcher.cache]
        assert sorted(batcher.advance(live, [4] * len(live)).tolist()) == ended
        batcher.check()
    assert not batcher.step() and len(batcher) == 0


def test_its_plan_is_as_the_plans_of_today():
    batcher = loaded()
    plan = batcher.plan
    assert plan.seq_ids.tolist() == [1, 2, 3, 0] and plan.n_decode == 3
    assert plan.samples.tolist() == [True, False, False, True]  # request 2 was cancelled
    assert plan.rows[[0, 2, 3]].tolist() == [1, 2, 0]
    inputs = batcher.inputs(plan)
    assert inputs.tokens.tolist() == [9, 0, 5] + [1] * 12 and inputs.slots[1] == 16 * 4
    assert batcher.advance(plan, [5, 0, -1, 6], finished=[True, True, False, False]).tolist() == [1]
    again = ContinuousBatcher.from_bytes(batcher.to_bytes())
    assert again.step().rows.tolist() == batcher.step().rows.tolist() == [0, 2, 1]


def test_a_batcher_of_version_2_whose_plans_have_no_numbers_goes_on_the_same():
    new = ContinuousBatcher(KVCache(16, 4))
    for length in (9, 5):
        new.submit(np.arange(length), max_new_tokens=4)
    first = new.step()
    new.advance(first, np.ones(len(first.seq_ids), np.int32))
    plan = new.step()
    arrays, header = new._state()
    arrays["count"] = arrays["count"][: c.NUMBER]  # what version 2 had
    old = ContinuousBatcher._from_state(arrays, header | {"version": 2})
    old.check()
    for _ in range(2):
        for batcher in (old, new):
            batcher.advance(plan)
            batcher.deliver(plan, np.ones(plan.seq_ids.size, np.int32))
        plan, same = old.step(), new.step()
        assert all(map(np.array_equal, plan, same))

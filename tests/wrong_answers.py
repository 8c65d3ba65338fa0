"Plausible wrong answers to the exercises of each page, which the checks must refuse: (old, new) changes a solution."
wrong = {
    ("00_load", 1): {
        "records put back after each draw": '''
def chance_of_leak(records, held_out, copies):
    p = held_out/records
    return 1 - p**copies - (1 - p)**copies
''',
        "all copies in test counts as a leak": ("all_in_train + all_in_test", "all_in_train"),
        "only the first copy is looked at": '''
def chance_of_leak(records, held_out, copies):
    return held_out/records*(copies > 1)
''',
    },
    ("00_load", 2): {
        "only direct ties": '''
def same_group(titles, texts):
    return [min(titles.index(t), texts.index(x)) for t, x in zip(titles, texts)]
''',
        "titles only": ("in (titles, texts)", "in (titles,)"),
        "titles and texts in one table": '''
def same_group(titles, texts):
    group, first = list(range(len(titles))), {}
    for column in (titles, texts):
        for i, value in enumerate(column):
            a, b = group[first.setdefault(value, i)], group[i]
            group = [min(a, b) if g in (a, b) else g for g in group]
    return group
''',
        "only one of the two groups is renamed": ("if g in (a, b)", "if g == b"),
    },
    ("00_load", 3): {
        "five runs, at the ends too": ("min(position, words - 5) - max(0, position - 4) + 1", "min(5, runs)"),
        "shared runs over the runs of one text": ("runs + changed", "runs"),
        "the replaced word counts once": '''
def similarity(words, position):
    return Fraction(words - 5, words - 3)
''',
    },
    ("01_flatten", 1): {
        "a blank text is a document": ("u.strip()", "u"),
        "a missing list is an empty one": (
            'None if texts is None else " ".join(t or "" for t in texts)',
            '" ".join(t or "" for t in texts or [])'),
        "an empty list is one dropped text": ("for t in texts or []", 'for t in texts or [""]'),
        "missing texts counted as empty": '''
def count(records, explode):
    texts = [[t or "" for t in r or []] for r in records]
    units = sum(texts, []) if explode else [" ".join(t) for t in texts]
    documents = sum(bool(u.strip()) for u in units)
    return documents, len(units) - documents, 0
''',
    },
    ("01_flatten", 2): {
        "stands in none of the texts": '''
def safe_separator(texts, candidates):
    return next((s for s in candidates if not any(s in t for t in texts)), None)
''',
        "the right number of parts will do": '''
def safe_separator(texts, candidates):
    return next((s for s in candidates if len(s.join(texts).split(s)) == len(texts)), None)
''',
        "the last candidate, where none works": ("next(undone, None)", "next(undone, candidates[-1])"),
    },
    ("02_tokenize", 1): {
        "empty documents vanish": ("found + [current], []", "found + [current]*bool(current), []"),
        "an empty document at the end": ("found + [current] if current else found", "found + [current]"),
        "the piece that was cut off is lost": ("found + [current] if current else found", "found"),
        "EOS is kept": ("found + [current], []", "found + [current + [i]], []"),
    },
    ("02_tokenize", 2): {
        "pairs overlap": ("i += 2 if found else 1", "i += 1"),
        "the result is merged again": '''
def merge(ids, pair, new):
    ids = list(ids)
    for i in range(len(ids)*2):
        if tuple(ids[i:i + 2]) == pair: ids[i:i + 2] = [new]
        if i and tuple(ids[i - 1:i + 1]) == pair: ids[i - 1:i + 1] = [new]
    return ids
''',
        "in either order": ("tuple(ids[i:i + 2]) == pair", "set(ids[i:i + 2]) == set(pair)"),
        "from the right": '''
def merge(ids, pair, new):
    out, i = [], len(ids)
    while i > 0:
        found = i > 1 and (ids[i - 2], ids[i - 1]) == pair
        out.insert(0, new if found else ids[i - 1])
        i -= 2 if found else 1
    return out
''',
    },
    ("02_tokenize", 3): {
        "every offset moves by the same": ("added*np.arange(len(offsets))", "added"),
        "the first one moves too": ("np.arange(len(offsets))", "np.arange(1, len(offsets) + 1)"),
        "a slice keeps its offsets": ("offsets - offsets[0] +", "offsets +"),
    },
    ("03_group", 1): {
        "one remainder for all": '''
def dropped(lengths, batch_size, block_size):
    return sum(lengths) % block_size
''',
        "short batches are dropped": (
            "total % block_size for total in batches if total >= block_size",
            "total % block_size for total in batches"),
        "a remainder for each document": '''
def dropped(lengths, batch_size, block_size):
    return sum(n % block_size for n in lengths)
''',
        "half a block for each batch": '''
def dropped(lengths, batch_size, block_size):
    return -(-len(lengths)//batch_size)*block_size//2
''',
    },
    ("03_group", 2): {
        "one per batch": '''
def lost_ends(lengths, batch_size, block_size):
    return -(-len(lengths)//batch_size)
''',
        "an end at the cut is lost": ("end > ends", "end >= ends"),
        "short batches are dropped": ("if ends[-1] >= block_size: lost", "lost"),
        "one cut for the whole split": '''
def lost_ends(lengths, batch_size, block_size):
    whole = sum(lengths)//block_size*block_size
    return sum(sum(lengths[:i + 1]) > whole for i in range(len(lengths)))
''',
    },
    ("03_group", 3): {
        "the remainder isn't dropped": (
            "divmod(at, block_size) if at < sum(lengths)//block_size*block_size else None",
            "divmod(at, block_size)"),
        "blocks begin anew with each document": '''
def place(document, position, lengths, block_size):
    return sum(n//block_size for n in lengths[:document]) + position//block_size, position % block_size
''',
        "the document's own length is counted": ("lengths[:document]", "lengths[:document + 1]"),
        "an EOS that isn't there": ("lengths[:document])", "lengths[:document]) + document"),
    },
    ("look/blocks", 1): {
        "documents and blocks, added up": (
            "begins = {sum(lengths[:i]) for i in range(len(lengths))} | set(range(0, whole, block_size))",
            "begins = [sum(lengths[:i]) for i in range(len(lengths))] + [*range(0, whole, block_size)]"),
        "the remainder counts": (
            "return sum(at < whole for at in begins)",
            "return len(begins | set(range(0, sum(lengths), block_size)))"),
        "every document by itself": '''
def pieces(lengths, block_size):
    return sum(-(-n//block_size) for n in lengths)
''',
    },
    ("look/blocks", 2): {
        "documents aren't cut by blocks": ("min(place, at % block_size)", "place"),
        "one tape": ("min(place, at % block_size)", "at % block_size"),
        "a token sees itself too": ("min(place, at % block_size)", "min(place, at % block_size) + 1"),
        "the remainder is kept": ("in_document[:whole]", "in_document"),
    },
    ("04_collate", 1): {
        "ours ignores ends too": (
            "for row in rows), padding",
            "for row in rows), padding + sum(row.count(eos) for row in rows)"),
        "one end a row": ("sum(row.count(eos) for row in rows)", "len(rows)"),
        "the tutorial's keeps ends": ("padding + sum(row.count(eos) for row in rows), padding", "padding, padding"),
    },
    ("04_collate", 2): {
        "no shift": ("(position - 1, token)", "(position, token)"),
        "the other way round": '''
def asked(labels):
    return [(i + 1, token) for i, token in enumerate(labels[:-1]) if token != -100]
''',
        "ignored labels are asked for": ("if position > 0 and token != -100", "if position > 0"),
        "the position whose own label is hidden": '''
def asked(labels):
    return [(i, labels[i + 1]) for i in range(len(labels) - 1) if labels[i] != -100]
''',
    },
    ("04_collate", 3): {
        "padded to the longest of all": ("width(batch)*len(batch)", "width(lengths)*len(batch)"),
        "the last batch is a whole one": ("width(batch)*len(batch)", "width(batch)*batch_size"),
        "one multiple too many": ("-(-max(batch)//multiple)*multiple", "(max(batch)//multiple + 1)*multiple"),
    },
    ("model/device", 1): {
        "of the sum, not the mean": ("return p/len(targets)", "return p"),
        "the wrong sign": ("return p/len(targets)", "return -p/len(targets)"),
        "the softmax alone": ("-= 1", "-= 0"),
        "a softmax over the tokens": ("logits.softmax(-1)", "logits.softmax(0)"),
    },
    ("model/device", 2): {
        "eight bits behind the first": ("- 7", "- 8"),
        "the same for all weights": '''
def spacing(weight):
    return 1/128
''',
        "a share of the weight": '''
def spacing(weight):
    return weight/128
''',
        "the nearest power of two": ("math.floor(math.log2(weight))", "round(math.log2(weight))"),
    },
    ("model/device", 3): {
        "one operation per weight": '''
def forward_flops(width, layers, vocabulary, block):
    return layers*(12*width**2 + 2*width*block) + width*vocabulary
''',
        "attention forgotten": (" + 2*2*width*block", ""),
        "scores without values": ("2*2*width*block", "2*width*block"),
        "an output layer in each layer": ("layers*layer + 2*width*vocabulary", "layers*(layer + 2*width*vocabulary)"),
    },
    ("training/watch", 1): {
        "the mean of the steps' speeds": (
            "sum(tokens)/sum(seconds)",
            "sum(n/s for n, s in zip(tokens, seconds))/len(tokens)"),
        "the first step counts": ("len(seconds) > 1", "len(seconds) > 10**9"),
        "the tokens of the first step are kept": ("seconds, tokens = seconds[1:], tokens[1:]", "seconds = seconds[1:]"),
    },
    ("training/watch", 2): {
        "a mean of the steps' means": ("sum(nats[s])/sum(tokens[s])", "sum(losses[s])/len(losses[s])"),
        "the last step of each stretch": ("sum(nats[s])/sum(tokens[s])", "losses[s][-1]"),
        "a mean since the start": ("slice(i, i + every)", "slice(0, i + every)"),
        "the end isn't shown": ("range(0, len(losses), every)", "range(0, len(losses)//every*every, every)"),
    },
    ("05_train", 1): {
        "the last rows are dropped": ("-(-blocks//rows)", "(blocks//rows)"),
        "rounded over all epochs": ("epochs*-(-blocks//rows)", "-(-epochs*blocks//rows)"),
        "accumulation makes more steps": ("per_device*accumulation*devices", "per_device*devices"),
        "devices don't count": ("per_device*accumulation*devices", "per_device*accumulation"),
    },
    ("05_train", 2): {
        "a factor on the perplexity": (
            "reported**(block_size/(block_size - 1))",
            "reported*block_size/(block_size - 1)"),
        "the wrong way round": ("block_size/(block_size - 1)", "(block_size - 1)/block_size"),
        "T + 1 predictions": ("block_size/(block_size - 1)", "(block_size + 1)/block_size"),
    },
    ("05_train", 3): {
        "it falls from the start": ("(steps - step)/(steps - warmup)", "(steps - step)/steps"),
        "the first step moves already": ("peak*step/warmup", "peak*(step + 1)/warmup"),
        "it reaches 0 in the last step": (
            "(steps - step)/(steps - warmup)",
            "(steps - 1 - step)/max(1, steps - 1 - warmup)"),
        "no warm-up": ("peak*step/warmup", "peak"),
    },
    ("training/share", 1): {
        "the value is stored, not the call": '''
def pickle_that_runs(expression):
    return pickle.dumps(eval(expression))
''',
        "the expression is stored as text": '''
def pickle_that_runs(expression):
    return pickle.dumps(expression)
''',
        "evaluated when it is made": ("return eval, (expression,)", "return eval, (repr(eval(expression)),)"),
    },
    ("training/share", 2): {
        "a limit on the whole time": '''
def gives_up(answers, every=2, patience=5):
    return next((every*(i + 1) for i in range(len(answers)) if every*(i + 1) > patience and not all(answers)), None)
''',
        "silences are added up": ("if answered: heard = now", "if answered: heard += every"),
        "no hope after exactly so long": ("now - heard > patience", "now - heard >= patience"),
        "the first ask is at once": '''
def gives_up(answers, every=2, patience=5):
    heard = 0
    for i, answered in enumerate(answers):
        if answered: heard = every*i
        elif every*i - heard > patience: return every*i
''',
    },
    ("training/lr_finder", 1): {
        "a linear axis": (
            "lowest*(highest/lowest)**(step/(steps - 1))",
            "lowest + (highest - lowest)*step/(steps - 1)"),
        "one factor too many": ("(steps - 1)", "steps"),
        "the first step has moved already": ("(step/(steps - 1))", "((step + 1)/steps)"),
    },
    ("training/lr_finder", 2): {
        "begun at 0, not corrected": ("average/(1 - beta**step)", "average"),
        "begun at the first loss": '''
def smoothed(losses, beta):
    out = losses[:1]
    for loss in losses[1:]: out.append(beta*out[-1] + (1 - beta)*loss)
    return out
''',
        "corrected one step late": ("enumerate(losses, 1)", "enumerate(losses, 2)"),
        "beta weighs the new loss": ("beta*average + (1 - beta)*loss", "(1 - beta)*average + beta*loss"),
    },
    ("06_perplexity", 1): {
        "a mean of means": '''
def perplexity_of(rows):
    return math.exp(np.mean([np.mean(row) for row in rows if row]))
''',
        "a mean of exponentials": '''
def perplexity_of(rows):
    return float(np.mean([math.exp(loss) for row in rows for loss in row]))
''',
        "a mean of the rows' perplexities": '''
def perplexity_of(rows):
    return float(np.mean([math.exp(np.mean(row)) for row in rows if row]))
''',
        "the mean, without an exponential": ("math.exp(sum(losses)/len(losses))", "sum(losses)/len(losses)"),
        "a base of 2": ("math.exp(sum(losses)/len(losses))", "2**(sum(losses)/len(losses))"),
    },
    ("06_perplexity", 2): {
        "all but the first, always": ("-(-n_tokens//block_size) if stride == block_size else 1", "1"),
        "one for each window": ("-(-n_tokens//block_size) if stride == block_size else 1", "-(-n_tokens//stride)"),
        "the short last window is forgotten": ("-(-n_tokens//block_size)", "n_tokens//block_size"),
        "the first token is counted": ("return n_tokens - blind", "return n_tokens - blind + 1"),
    },
    ("06_perplexity", 3): {
        "nats, not bits": ("math.log2(perplexity)", "math.log(perplexity)"),
        "characters, not bytes": ("len(text.encode())", "len(text)"),
        "bits per token": ("tokens*math.log2(perplexity)/len(text.encode())", "math.log2(perplexity)"),
        "the perplexity itself is shared out": ("math.log2(perplexity)", "perplexity"),
    },
    ("model/baselines", 1): {
        "how often it was seen": '''
def continuations(ids, vocab_size):
    return [ids[1:].count(token) for token in range(vocab_size)]
''',
        "what comes after it, not before": ("for _, second in pairs", "for second, _ in pairs"),
        "not after itself": ("set(zip(ids, ids[1:]))", "{(a, b) for a, b in zip(ids, ids[1:]) if a != b}"),
        "the row taken for a ring": ("zip(ids, ids[1:])", "zip(ids[-1:] + ids[:-1], ids)"),
    },
    ("model/baselines", 2): {
        "only seen tokens get one more": ("(n + vocab_size)", "(n + kinds)"),
        "all that is cut off goes to the unseen": ("kinds*discount/n*unseen/vocab_size", "kinds*discount/n"),
        "a discount for each occurrence": ("kinds*discount/n*", "discount*"),
        "what is left for the seen": ("return unseen/", "return 1 - unseen/"),
    },
    ("model/baselines", 3): {
        "the losses are mixed": '''
def mixed_loss(first, second, share):
    return float((share*first + (1 - share)*second).mean())
''',
        "the perplexities are mixed": '''
def mixed_loss(first, second, share):
    return float(np.log(share*np.exp(first.mean()) + (1 - share)*np.exp(second.mean())))
''',
        "the share of the other": (
            "share*np.exp(-first) + (1 - share)*np.exp(-second)",
            "(1 - share)*np.exp(-first) + share*np.exp(-second)"),
        "the logarithm of the mean": ("-np.log(p).mean()", "-np.log(p.mean())"),
    },
    ("look/heatmap", 1): {
        "no shift": ("zip(logits, ids[1:])", "zip(logits[1:], ids[1:])"),
        "counted from 0": ("1 + int(", "int("),
        "the unlikeliest first": ("guesses > guesses[token]", "guesses < guesses[token]"),
        "equals come first": ("1 + int((guesses > guesses[token])", "int((guesses >= guesses[token])"),
    },
    ("look/heatmap", 2): {
        "the loss alone": ("[:, 0] - entropy", "[:, 0]"),
        "the plain mean of all costs": ("(costs.exp().reciprocal()*costs).sum(-1)", "costs.mean(-1)"),
        "the sign turned round": (
            "costs.gather(1, targets[:, None])[:, 0] - entropy",
            "entropy - costs.gather(1, targets[:, None])[:, 0]"),
        "bits and nats": (
            "(costs.exp().reciprocal()*costs).sum(-1)",
            "(costs.exp().reciprocal()*costs).sum(-1)/math.log(2)"),
    },
    ("07_generate", 1): {
        "chances are added": ("1 - (1 - tail)**tokens", "min(1.0, tail*tokens)"),
        "all from the tail": ("1 - (1 - tail)**tokens", "tail**tokens"),
        "none from the tail": ("1 - (1 - tail)**tokens", "(1 - tail)**tokens"),
    },
    ("07_generate", 2): {
        "the wrong way round": ("math.log(p/q)/math.log(times)", "math.log(times)/math.log(p/q)"),
        "probabilities are divided": ("math.log(p/q)/math.log(times)", "p/q/times"),
        "a difference of probabilities": ("math.log(p/q)", "math.log(1 + p - q)"),
    },
    ("07_generate", 3): {
        "in the order they come": ("sorted(probabilities)[-n:]", "probabilities[:n]"),
        "the least likely first": ("sorted(probabilities)[-n:]", "sorted(probabilities)[:n]"),
        "one token more": ("[-n:]", "[-n - 1:]"),
        "the n-th likeliest alone": ("sum(sorted(probabilities)[-n:])", "sorted(probabilities)[-n]"),
    },
    ("look/generation_app", 1): {
        "nothing at first": ('names="value")\n    show()', 'names="value")'),
        "only at first": ('slider.observe(show, names="value")', "pass"),
        "for every trait": (', names="value"', ""),
        "one change behind": (
            'def show(change=None): label.value = f"{slider.value:.1f}"',
            'def show(change=None): label.value = f"{change[\'old\'] if change else slider.value:.1f}"'),
    },
    ("look/generation_app", 2): {
        "generates at once": ("button.on_click(clicked)", "clicked(button); button.on_click(clicked)"),
        "the prompt of the first day": '''
def wire(button, prompt, output, model, tokenizer):
    text = prompt.value
    button.on_click(lambda _: setattr(output, "value", generate(model, tokenizer, text, max_new_tokens=5, seed=0)))
''',
        "the error is let go": ("except ValueError as refused: output.value = str(refused)", "finally: pass"),
        "the error is swallowed": ("output.value = str(refused)", "pass"),
        "generates while one types": (
            "button.on_click(clicked)",
            'prompt.observe(clicked, names="value"); button.on_click(clicked)'),
        "no seed": (", seed=0)", ", do_sample=False)"),
    },
    ("look/explorer", 1): {
        "the start isn't continued": ("ids + [token]", "ids"),
        "probabilities are added": ("p*next_probabilities(ids)[token]", "p + next_probabilities(ids)[token] - 1"),
        "the mean of the probabilities": '''
def path_probability(next_probabilities, start, path):
    return sum(next_probabilities(start + path[:i])[t] for i, t in enumerate(path))/max(1, len(path))
''',
        "only the last token counts": ("p*next_probabilities", "next_probabilities"),
    },
    ("look/explorer", 2): {
        "greedy": '''
def likeliest_pair(first, second):
    i = first.index(max(first))
    return i, second[i].index(max(second[i]))
''',
        "the surest second token": ("first[pair[0]]*second", "second"),
        "probabilities are added": ("first[pair[0]]*second", "first[pair[0]] + second"),
    },
}

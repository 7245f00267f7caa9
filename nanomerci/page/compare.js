main.append(el("h1", {}, data.name), ...data.verdict.map(v => el("p", {}, v)), ...data.arms.map(v => el("p", {}, v)));
